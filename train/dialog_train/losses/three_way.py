"""CLIP with a third, fused vector of each image-text pair: three contrastive losses (thesis eq. 4.2.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dialog_train.losses.contrastive import contrastive_loss


def three_way_loss(
    image_features: Tensor,
    text_features: Tensor,
    fused_features: Sequence[Tensor],
    logit_scale: Tensor | float,
    *,
    a: float = 1 / 3,
    b: float = 1 / 3,
) -> dict[str, Tensor]:
    """The three parts of the loss, already weighted; their sum is the loss.

    L = a CE(I, T) + b CE(T, M) + (1 - a - b) CE(M, I)

    CE is the symmetric `contrastive_loss`. All features are the rows (N / processes, D) of this process, unit-norm; row
    i of each belongs to image i. `fused_features` contains one M per view; their losses are averaged.

    Raises ValueError for weights that violate 0 < a, 0 < b, a + b < 1, for an empty `fused_features`, and for shapes
    that do not match.
    """
    if not (a > 0 and b > 0 and a + b < 1):
        raise ValueError(f"the weights must be 0 < a, 0 < b and a + b < 1, got a = {a}, b = {b}")
    if not fused_features:
        raise ValueError("fused_features must have at least one view")
    text_fused, fused_image = (
        torch.stack([contrastive_loss(features, fused, logit_scale) for fused in fused_features]).mean()
        for features in (text_features, image_features)
    )
    return {
        "image_text_loss": a * contrastive_loss(image_features, text_features, logit_scale),
        "text_fused_loss": b * text_fused,
        "fused_image_loss": (1 - a - b) * fused_image,
    }
