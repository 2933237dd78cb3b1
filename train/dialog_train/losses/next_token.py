"""The loss of a text decoder: cross entropy of the next token."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100
"""Target id of positions that are not part of the text."""


def next_token_sums(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, T, V) logits, (N, T) token ids -> (N, 2) float32: -sum_t log p(target_t) and number of tokens of each text.

    The two are returned separately so that the mean over all tokens can be computed after the rows of all processes are
    gathered. `targets` are IGNORED after the end of a text.

    Raises ValueError for shapes that do not match.
    """
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} must be (N, T, V) for targets {tuple(targets.shape)}")
    losses = cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")  # (N, T)
    return torch.stack([losses.sum(1), (targets != IGNORED).sum(1).to(losses.dtype)], dim=1)


def next_token_loss(sums: Tensor) -> Tensor:
    """The mean loss over all tokens, from `next_token_sums` (N, 2), as in T5 (arXiv 1910.10683, section 3.1)."""
    loss, tokens = sums.sum(0)
    return loss / tokens
