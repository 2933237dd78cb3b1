"""Converts texts to token ids without padding, with any of open_clip's tokenizers."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dialog_gen.core.hashing import sha256_json

Ids = npt.NDArray[np.int32]


class TextEncoder:
    """Converts texts to token ids: with start and end tokens, truncated to the context length, without padding."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # open_clip wraps Hugging Face's tokenizers in this attribute; its own tokenizer pads with 0.
        inner: Any = getattr(tokenizer, "tokenizer", None)
        self.context_length: int = tokenizer.context_length
        self.pad_id: int = 0 if inner is None else inner.pad_token_id
        self._ends_with_pad = inner is not None and inner.eos_token_id == self.pad_id
        vocabulary: dict[str, int] = tokenizer.encoder if inner is None else inner.get_vocab()
        self.vocabulary_sha256 = sha256_json(vocabulary)
        self.start, self.end = self._frame()

    @property
    def config(self) -> dict[str, Any]:
        """Everything that determines the ids, as JSON values."""
        names = ("vocabulary_sha256", "context_length", "pad_id", "start", "end")
        return {name: getattr(self, name) for name in names}

    def __call__(self, texts: Sequence[str]) -> tuple[list[Ids], list[bool]]:
        """The ids of each text, and whether the text was truncated."""
        if not texts:
            return [], []
        # With one token more than the context, texts that are too long can be recognised for every tokenizer.
        ids = self._encode(texts, self.context_length + 1)
        cut = [len(row) > self.context_length for row in ids]
        places = [i for i, is_cut in enumerate(cut) if is_cut]
        if places:
            again = self._encode([texts[i] for i in places], self.context_length)
            for i, row in zip(places, again, strict=True):
                ids[i] = row
        return ids, cut

    def _encode(self, texts: Sequence[str], length: int) -> list[Ids]:
        padded: npt.NDArray[Any] = self._tokenizer(list(texts), context_length=length).numpy()
        lengths = padded.shape[1] - np.argmax((padded != self.pad_id)[:, ::-1], axis=1)
        lengths[(padded == self.pad_id).all(1)] = 0
        if self._ends_with_pad:
            lengths = np.minimum(lengths + 1, padded.shape[1])
        return [row[:end].astype(np.int32) for row, end in zip(padded, lengths, strict=True)]

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids with which every text begins and ends. Raises ValueError if they cannot be determined."""
        special, probe = (row.tolist() for row in self._encode(["", "a"], self.context_length))
        for start in range(len(special) + 1):
            content = probe[start : len(probe) - (len(special) - start)]
            if content and special[:start] + content + special[start:] == probe:
                return special[:start], special[start:]
        raise ValueError(f"cannot determine start and end tokens: '' gives {special}, 'a' gives {probe}")


def join_ids(texts: Iterable[Ids], start: Sequence[int], end: Sequence[int], context_length: int) -> Ids:
    """Concatenates the ids of several texts, with one start and one end, truncated to the context length."""
    contents = [ids[len(start) : len(ids) - len(end)] for ids in texts]
    content = np.concatenate(contents)[: context_length - len(start) - len(end)]
    return np.concatenate([np.asarray(start, np.int32), content, np.asarray(end, np.int32)])


def padded(texts: Sequence[Ids], pad_id: int, length: int) -> Tensor:
    """The ids of texts as an int64 tensor (N, L); L is the length of the longest text, but at least `length`."""
    rows = np.full((len(texts), max([length, *map(len, texts)])), pad_id, np.int64)
    for row, ids in zip(rows, texts, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(rows)


def last_tokens(tokens: Tensor, pad_id: int) -> Tensor:
    """Token ids (N, L), padded at the end -> index of the last token of each text (N,), ignoring the padding."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(tokens != pad_id, places, 0).amax(-1)


def padding_of(tokens: Tensor, pad_id: int) -> Tensor:
    """Token ids (N, L), padded at the end -> True after the last token of each text (N, L)."""
    return torch.arange(tokens.shape[1], device=tokens.device) > last_tokens(tokens, pad_id).unsqueeze(-1)
