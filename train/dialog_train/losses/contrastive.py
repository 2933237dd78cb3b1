"""The contrastive loss of CLIP (arXiv 2103.00020), in one direction or both."""

from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dialog_train.losses.base import LOSSES, Direction, PairLoss


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, *, direction: Direction = "symmetric"
) -> Tensor:
    """Mean cross entropy of matching N texts with their N images; the other pairs are the negatives.

    `image_features` and `text_features` are (N, D), unit-norm; pair i matches. With S = logit_scale * texts @ images.T:
    `t2i` is the softmax over images (rows of S), `i2t` over texts (columns), `symmetric` the mean of both.

    Raises ValueError for shapes that do not match or an unknown direction.
    """
    if image_features.shape != text_features.shape or image_features.ndim != 2:
        raise ValueError(
            f"features must be two (N, D) tensors of one shape, got {tuple(image_features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    logits = logit_scale * text_features @ image_features.T
    targets = torch.arange(len(logits), device=logits.device)
    if direction == "t2i":
        return cross_entropy(logits, targets)
    if direction == "i2t":
        return cross_entropy(logits.T, targets)
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


LOSSES.register("clip")(
    PairLoss(
        description="CLIP: softmax over the batch in both directions (arXiv 2103.00020)", function=contrastive_loss
    )
)
