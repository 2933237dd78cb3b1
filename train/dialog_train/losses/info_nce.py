"""InfoNCE over texts, in both directions, with hard negatives in one of them (jina-clip, arXiv 2405.20204)."""

from collections.abc import Callable

import torch
from torch import Tensor

from dialog_train.losses.blocks import Statistics, matching, over_rows
from dialog_train.losses.contrastive import softmax_loss
from dialog_train.processes import gather_columns

LeftOut = Callable[[slice], Tensor]
"""Numbers of queries in the batch of all processes -> (queries, N + M) bool."""


def info_nce(
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.05,
    left_out: LeftOut | None = None,
) -> Tensor:
    """The sum of both directions; each is the mean over the N pairs (q_i, p_i). With c(x, y) = x . y / temperature:

    forward    -log( exp c(q_i, p_i) / (sum_j exp c(q_i, p_j) + sum_j sum_k exp c(q_i, n_jk)) )
    backward   -log( exp c(q_i, p_i) / sum_j exp c(q_j, p_i) )

    `queries` and `targets` are the rows (N / processes, D) of this process, `negatives` (M / processes, D) the hard
    negatives of its queries; all queries of the batch are compared with all M of them, and the loss is InfoNCE+. All
    are unit-norm.

    `left_out` marks false negatives of some queries among [targets; negatives] of all processes, such as a target equal
    to the query's own: they are left out of the denominator of their row's query, and of the backward direction.

    Raises ValueError for shapes that do not match or a temperature that is not positive.
    """
    if queries.shape != targets.shape or queries.ndim != 2:
        raise ValueError(
            f"queries and targets must be two (N, D) tensors of one shape, got {tuple(queries.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    candidates = gather_columns(targets)
    count = len(candidates)
    if negatives is not None:
        candidates = torch.cat([candidates, gather_columns(negatives)])

    def block(first: int, queries: Tensor) -> Statistics:
        logits = queries @ candidates.T / temperature  # (B, N + M)
        if left_out is not None:
            # Finite, because all rows of a block may leave out a column.
            out = left_out(slice(first, first + len(logits)))
            logits = logits.masked_fill(out, torch.finfo(logits.dtype).min)
        own = matching(logits, first).double().sum()
        return Statistics((logits.logsumexp(1).double().sum() - own, own), (logits[:, :count].logsumexp(0),))

    return 2 * softmax_loss(over_rows(block, [queries], len(candidates)), count, "symmetric").to(queries.dtype)
