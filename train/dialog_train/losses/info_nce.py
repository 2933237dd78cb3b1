"""InfoNCE over texts, in both directions, with hard negatives in one of them (jina-clip, arXiv 2405.20204)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def info_nce(
    queries: Tensor,
    targets: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.05,
    left_out: Tensor | None = None,
) -> Tensor:
    """The sum of both directions; each is the mean over the N pairs (q_i, p_i). With c(x, y) = x . y / temperature:

    forward    -log( exp c(q_i, p_i) / (sum_j exp c(q_i, p_j) + sum_j sum_k exp c(q_i, n_jk)) )
    backward   -log( exp c(q_i, p_i) / sum_j exp c(q_j, p_i) )

    `queries` and `targets` are (N, D). `negatives` (M, D) are the hard negatives of all queries of the batch; with them
    the loss is InfoNCE+. All are unit-norm. With several processes they are the gathered global batch.

    `left_out` (N, N + M) bool marks false negatives among [targets; negatives], such as a target equal to the query's
    own: they are left out of the denominator of their row's query, and of the backward direction.

    Raises ValueError for shapes that do not match or a temperature that is not positive.
    """
    if queries.shape != targets.shape or queries.ndim != 2:
        raise ValueError(
            f"queries and targets must be two (N, D) tensors of one shape, got {tuple(queries.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    candidates = targets if negatives is None else torch.cat([targets, negatives])
    logits = queries @ candidates.T / temperature  # (N, N + M)
    if left_out is not None:
        logits = logits.masked_fill(left_out, -torch.inf)
    own = torch.arange(len(queries), device=queries.device)
    return cross_entropy(logits, own) + cross_entropy(logits[:, : len(queries)].T, own)
