"""The loss of a text decoder: cross entropy of each next token of its targets."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100
"""In place of a target's token: not a part of it."""


def next_token_sums(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, T, V) logits and (N, T) token ids -> (N, 2) in float32, of each text: -sum_t log p(target_t), and its tokens.

    Apart, so that the mean over the tokens of a batch can be taken after the rows of all processes were gathered.
    `targets` are IGNORED behind the end of a text.

    Raises ValueError for shapes that do not match.
    """
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} must be (N, T, V) for targets {tuple(targets.shape)}")
    losses = cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")  # (N, T)
    return torch.stack([losses.sum(1), (targets != IGNORED).sum(1).to(losses.dtype)], dim=1)


def next_token_loss(sums: Tensor) -> Tensor:
    """The mean over all tokens of what `next_token_sums` gave, as T5 is trained (arXiv 1910.10683, section 3.1)."""
    loss, tokens = sums.sum(0)
    return loss / tokens
