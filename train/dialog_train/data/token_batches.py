"""Batches of texts from token ids that lie one after another in memory or on a GPU, without a loop over the texts."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dialog_gen.clip.text.texts import Texts
from dialog_train.data.columns import Numbers, expand


class Spans(NamedTuple):
    """Where the ids of N texts are: for each, the place of the first one, and how many they are."""

    place: Numbers
    length: Numbers


class TokenIds:
    """Token ids (T,) int32 of many texts, on the device where batches are made from them."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        """(T,)"""
        self._holds: dict[int, bool] = {}

    def holds(self, value: int) -> bool:
        """Whether any of all ids is `value`; reads the device once for each value."""
        if value not in self._holds:
            self._holds[value] = bool((self.ids == value).any())
        return self._holds[value]

    def filled(self, rows: Numbers, columns: Numbers, places: Numbers, shape: tuple[int, int], value: int) -> Tensor:
        """A tensor (N, L) int64 of `value`, with the ids at `places` in the given rows and columns."""
        cells = self.here(rows * shape[1] + columns)
        tokens = torch.full((shape[0] * shape[1],), value, dtype=torch.int64, device=self.ids.device)
        tokens[cells] = self.ids[self.here(places)].long()
        return tokens.view(shape)

    def rows(self, spans: Spans, width: int, pad_id: int) -> Tensor:
        """The texts as (N, width) int64, padded."""
        place, length = self.here(spans.place), self.here(spans.length)
        numbers = torch.arange(width, device=self.ids.device)
        padding = numbers >= length[:, None]
        tokens = self.ids[(place[:, None] + numbers).masked_fill_(padding, 0)]
        return tokens.long().masked_fill_(padding, pad_id)

    def here(self, numbers: npt.NDArray[Any]) -> Tensor:
        """Numbers on the device of the ids; the copy does not wait."""
        tensor = torch.from_numpy(numbers)
        if self.ids.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.ids.device, non_blocking=True)


class TokenBatches:
    """Makes `Texts` from token ids, truncated to the context length.

    Texts are padded to the longest text or, with `full_length`, to the context length.
    """

    def __init__(self, tokenizer: dict[str, Any], context_length: int | None = None) -> None:
        """`tokenizer`: as in `TextEncoder.config`. `context_length`: truncates texts to fewer tokens than stored."""
        self.context_length: int = context_length or tokenizer["context_length"]
        self._pad_id: int = tokenizer["pad_id"]
        self._start: list[int] = tokenizer["start"]
        self._end: list[int] = tokenizer["end"]

    def texts(self, ids: TokenIds, spans: Spans, *, full_length: bool) -> Texts:
        """The texts at `spans`."""
        lengths = np.minimum(spans.length, self.context_length)
        tokens = ids.rows(Spans(spans.place, lengths), self._width(lengths, full_length), self._pad_id)
        cut = np.flatnonzero(spans.length > self.context_length)
        if len(cut) and self._end:
            tokens[ids.here(cut), self.context_length - len(self._end) : self.context_length] = ids.here(
                np.array(self._end)
            )
        return Texts(tokens, lengths, self._may_hold_padding(ids, tokens, lengths))

    def joined(self, ids: TokenIds, spans: Spans, counts: Numbers, *, full_length: bool) -> Texts:
        """N texts, each joined from the next of `counts` (N,) texts at `spans`, with one start and one end."""
        start, end = len(self._start), len(self._end)
        lengths = spans.length - start - end
        ends = np.cumsum(counts)
        before = np.cumsum(lengths) - lengths
        # The number of ids before each text, within its row.
        before -= np.repeat(before[ends - counts], counts)
        taken = np.clip(self.context_length - start - end - before, 0, lengths)
        totals = np.add.reduceat(taken, ends - counts) + start + end if len(counts) else counts
        rows = np.repeat(np.repeat(np.arange(len(counts)), counts), taken)
        shape = len(counts), self._width(totals, full_length)
        columns = expand(start + before, taken)
        tokens = ids.filled(rows, columns, expand(spans.place + start, taken), shape, self._pad_id)
        if start:
            tokens[:, :start] = ids.here(np.array(self._start))
        for number, token in enumerate(self._end):
            tokens[ids.here(np.arange(len(counts))), ids.here(totals - end + number)] = token
        return Texts(tokens, totals, self._may_hold_padding(ids, tokens, totals))

    def _may_hold_padding(self, ids: TokenIds, tokens: Tensor, lengths: Numbers) -> bool:
        # Of ids on a GPU it is asked once for all texts, so that no batch waits for it.
        if tokens.device.type != "cpu":
            return ids.holds(self._pad_id)
        return int((tokens == self._pad_id).sum()) > tokens.numel() - int(lengths.sum())

    def _width(self, lengths: Numbers, full_length: bool) -> int:
        return self.context_length if full_length else int(lengths.max(initial=0))


def keys_of(texts: Texts) -> Numbers:
    """Numbers (N,) that are equal for equal texts, and else differ but for a chance of 2^-64; the texts are on the CPU.

    They do not depend on the padding.
    """
    width = texts.tokens.shape[1]
    real = np.arange(width) < texts.lengths[:, None]
    factors = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, width) | 1
    # Sums of products modulo 2^64.
    return np.where(real, (texts.tokens.numpy() + 1) * factors, 0).sum(1)


class LazyStrings(Sequence[str]):
    """Strings that are read when the first one is asked for."""

    def __init__(self, count: int, read: Callable[[], list[str]]) -> None:
        self._count, self._read = count, read

    @cached_property
    def _strings(self) -> list[str]:
        return self._read()

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._strings == list(other)

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._strings[index]
