"""Losses of all pairs of N rows and M columns, without an N x M matrix in memory and on no process all of its rows.

A loss implements one function, which maps a block of rows to `Statistics`: sums over pairs, and logarithms of sums.
The statistics of all blocks and of all processes are merged, and the loss is a function of what results. A large block
is divided; the similarities of a part are then computed once for the statistics and again for the gradients, as in
Inf-CL (arXiv 2410.17243), so that at most one part is in memory.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dialog_train.processes import gather_rows, place

# Number of pairs whose similarities are kept in memory: 64 MiB of float32 on a CPU, 256 MiB on a GPU.
_PAIRS, _PAIRS_GPU = 1 << 24, 1 << 26


class Statistics(NamedTuple):
    """What is known of a set of pairs. The shapes do not depend on the rows."""

    sums: tuple[Tensor, ...] = ()
    """Each is a sum over the pairs."""
    log_sums: tuple[Tensor, ...] = ()
    """Each contains logarithms of such sums, for example one value per column."""


Block = Callable[..., Statistics]
"""(number of the first row, a slice of each of the row tensors) -> statistics of these rows."""


def over_rows(block: Block, rows: Sequence[Tensor], columns: int) -> Statistics:
    """The statistics of all rows of all processes; `rows` are tensors (N, ...) of this process's rows.

    Rows are numbered over all processes, in order of rank, so row i matches column i if the columns are gathered. Each
    process must have the same number of rows. `block` compares each row with `columns` columns, and takes other tensors
    from its closure, with gradients; it must not draw random numbers.
    """
    count = len(rows[0])
    first = place()[0] * count
    size = max(1, (_PAIRS if rows[0].device.type == "cpu" else _PAIRS_GPU) // columns)
    if size >= count:
        parts = [block(first, *rows)]
    else:
        # Only inputs of a part are kept for the backward pass.
        again = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        pieces = zip(range(first, first + count, size), *(of.split(size) for of in rows), strict=True)
        parts = [again(*piece) for piece in pieces]
    sums, log_sums = (zip(*each, strict=True) for each in zip(*parts, strict=True))
    return Statistics(
        tuple(_of_all_processes(torch.stack(each).sum(0)).sum(0) for each in sums),
        tuple(_of_all_processes(torch.stack(each).logsumexp(0)).logsumexp(0) for each in log_sums),
    )


def _of_all_processes(statistic: Tensor) -> Tensor:
    return gather_rows(statistic[None])


def require_pairs(image_features: Tensor, text_features: Tensor) -> None:
    """Raises ValueError unless both are (N, D) and of one shape."""
    if image_features.shape != text_features.shape or image_features.ndim != 2:
        raise ValueError(
            f"features must be two (N, D) tensors of one shape, got {tuple(image_features.shape)} and "
            f"{tuple(text_features.shape)}"
        )


def matching(similarities: Tensor, first: int) -> Tensor:
    """The similarities of matching pairs in a block (B, M) whose first row has the number `first`: (B,)."""
    return similarities.diagonal(first)


def signed(logits: Tensor, first: int) -> Tensor:
    """Logits (B, M) of a block, negated except for matching pairs: those of what is true of each pair."""
    return torch.diagonal_scatter(-logits, matching(logits, first), first)
