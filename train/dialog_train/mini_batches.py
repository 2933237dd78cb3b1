"""Exact gradients of a large batch with the activations of a small one: gradient caching (arXiv 2101.06983)."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dialog_gen.clip.text.texts import Texts, joined


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> "_Rows": ...


AnyRows = TypeVar("AnyRows", bound=_Rows)


def in_mini_batches(tower: Callable[[AnyRows], Tensor], rows: AnyRows, size: int | None) -> Tensor:
    """The vectors (N, D) of N rows, by passes of at most `size` rows; None takes all at once.

    With several passes, activations are kept only during a pass and computed again for the gradients, with the same
    random numbers. Loss and gradients are those of one pass over all rows, except for what dropout draws.
    """
    if size is None or len(rows) <= size:
        return tower(rows)
    starts = range(0, len(rows), size)
    passes = [checkpoint(tower, rows[start : start + size], use_reentrant=False) for start in starts]
    return torch.cat(passes)  # pyright: ignore[reportArgumentType]


def texts_in_mini_batches(
    tower: Callable[[Texts], Tensor], texts: Sequence[Texts], pad_id: int, size: int | None
) -> tuple[Tensor, ...]:
    """The vectors of each set of texts, by passes over the texts of all sets: see `in_mini_batches`."""
    vectors = in_mini_batches(tower, joined(texts, pad_id), size)
    return vectors.split([len(one) for one in texts])
