"""A batch of texts as token ids, with lengths that are known without asking the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from dialog_gen.clip.text.tokens import Ids

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """N texts, padded at the end to a common length."""

    tokens: Tensor
    """(N, L) int64, on any device."""
    lengths: Lengths
    """(N,) the number of tokens of each text without its padding, always on the CPU: what a tower need not read from
    the device. The token that a tower pools is among them."""
    may_hold_padding: bool = True
    """Whether a token before a text's end may be the padding id, as where a text names that token: towers that mask the
    padding then mask it too."""

    @classmethod
    def of(cls, texts: Sequence[Ids], pad_id: int, least: int = 0) -> "Texts":
        """Texts as token ids without padding; L is the length of the longest text, but at least `least`."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        rows = np.full((len(texts), max(least, int(lengths.max(initial=0)))), pad_id, np.int64)
        ids = np.concatenate(texts) if len(texts) else np.empty(0, np.int64)
        rows[np.arange(rows.shape[1]) < lengths[:, None]] = ids
        return cls(torch.from_numpy(rows), lengths, bool((ids == pad_id).any()))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: slice) -> "Texts":
        """Some of the texts; they share the memory of all."""
        return Texts(self.tokens[rows], self.lengths[rows], self.may_hold_padding)

    def to(self, device: torch.device) -> "Texts":
        """A copy with its tokens on `device`; from pinned memory it does not wait for the copy."""
        return replace(self, tokens=self.tokens.to(device, non_blocking=True))

    def pin_memory(self) -> "Texts":
        """A copy with its tokens in pinned memory."""
        return replace(self, tokens=self.tokens.pin_memory())


def joined(sets: Sequence[Texts], pad_id: int) -> Texts:
    """The texts of all sets, in order, padded to a common length."""
    if len(sets) == 1:
        return sets[0]
    length = max(one.tokens.shape[1] for one in sets)
    rows = [pad(one.tokens, (0, length - one.tokens.shape[1]), value=pad_id) for one in sets]
    lengths = np.concatenate([one.lengths for one in sets])
    return Texts(torch.cat(rows), lengths, any(one.may_hold_padding for one in sets))


def passes(lengths: Sequence[int] | Lengths, pass_cost_tokens: int) -> list[int]:
    """Divides texts, sorted by length, into passes with the least total cost; returns the number of texts in each pass.

    The cost is the number of tokens with padding, plus `pass_cost_tokens` per pass. Exact, by dynamic programming over
    the distinct lengths.
    """
    distinct, counts = np.unique(np.asarray(lengths), return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    least = np.zeros(len(before), np.int64)
    start = np.zeros(len(before), np.int64)
    for end in range(1, len(before)):
        tokens = least[:end] + (before[end] - before[:end]) * distinct[end - 1]
        start[end] = tokens.argmin()
        least[end] = tokens[start[end]] + pass_cost_tokens
    sizes: list[int] = []
    end = len(distinct)
    while end:
        sizes.append(int(before[end] - before[start[end]]))
        end = start[end]
    return sizes[::-1]
