"""Converts texts to token ids without padding, with any of open_clip's tokenizers."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dialog_gen.clip.text.word_ids import fast_ids
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
        self._fast_ids = fast_ids(tokenizer)
        self.start, self.end = self._frame()

    @cached_property
    def vocabulary_sha256(self) -> str:
        """SHA-256 of the vocabulary as JSON. Most encoders are never asked for it, and it takes a tenth of a second."""
        inner: Any = getattr(self._tokenizer, "tokenizer", None)
        vocabulary: dict[str, int] = self._tokenizer.encoder if inner is None else inner.get_vocab()
        return sha256_json(vocabulary)

    @property
    def config(self) -> dict[str, Any]:
        """Everything that determines the ids, as JSON values."""
        names = ("vocabulary_sha256", "context_length", "pad_id", "start", "end")
        return {name: getattr(self, name) for name in names}

    def __call__(self, texts: Sequence[str]) -> tuple[list[Ids], list[bool]]:
        """The ids of each text, and whether the text was truncated."""
        ids, ends, cut = self.flat(texts)
        return [ids[start:end] for start, end in pairwise([0, *ends.tolist()])], cut.tolist()

    def flat(self, texts: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The ids of all texts, one after another; the end of each text in them; which texts were truncated."""
        # With one token more than the context, texts that are too long can be recognised for every tokenizer.
        rows = self._encode(texts, self.context_length + 1)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        cut = lengths > self.context_length
        places: list[int] = np.flatnonzero(cut).tolist()
        for place, row in zip(places, self._encode([texts[i] for i in places], self.context_length), strict=True):
            rows[place], lengths[place] = row, len(row)
        ends = np.cumsum(lengths)
        return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), ends, cut

    def _encode(self, texts: Sequence[str], length: int) -> list[list[int]]:
        if not texts:
            return []
        if self._fast_ids is not None:
            rows = self._fast_ids(texts, length)
        else:
            rows = self._tokenizer(list(texts), context_length=length).tolist()
        return [self._without_padding(row, length) for row in rows]

    def _without_padding(self, row: list[int], length: int) -> list[int]:
        end = len(row)
        while end and row[end - 1] == self.pad_id:
            end -= 1
        ends = [self.pad_id] if self._ends_with_pad and end < length else []
        return row if end == len(row) and not ends else [*row[:end], *ends]

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids with which every text begins and ends. Raises ValueError if they cannot be determined."""
        special, probe = self._encode(["", "a"], self.context_length)
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


def last_tokens(tokens: Tensor, pad_id: int) -> Tensor:
    """Token ids (N, L), padded at the end -> index of the last token of each text (N,), ignoring the padding."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(tokens != pad_id, places, 0).amax(-1)


def padding_of(tokens: Tensor, pad_id: int) -> Tensor:
    """Token ids (N, L), padded at the end -> True after the last token of each text (N, L)."""
    return torch.arange(tokens.shape[1], device=tokens.device) > last_tokens(tokens, pad_id).unsqueeze(-1)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer of Hugging Face's, or open_clip's wrapper of one.

    The truncation and padding of its last call are left out: transformers would keep them for whoever loads it.
    """
    backend = getattr(getattr(tokenizer, "tokenizer", tokenizer), "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(folder)
