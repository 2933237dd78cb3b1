"""CLIP-3Modal: contrastive losses of dialogue vectors with images and with captions (thesis eq. 4.3.1)."""

from torch import Tensor

from dialog_train.losses.base import Direction
from dialog_train.losses.contrastive import contrastive_loss


def third_tower_loss(
    image_features: Tensor,
    caption_features: Tensor,
    dialogue_features: Tensor,
    logit_scale: Tensor | float,
    *,
    a: float = 0.65,
    direction: Direction = "symmetric",
) -> dict[str, Tensor]:
    """The two parts of the loss, already weighted; their sum is the loss.

    L = a CE(I(x), G(z)) + (1 - a) CE(T(y), G(z))

    All features are the rows (N / processes, D) of this process, unit-norm; row i of each belongs to image i. Only
    `dialogue_features`, from the third tower G, need a gradient: I and T are frozen. `direction` applies to both parts;
    `t2i`, the softmax over images and over captions for each dialogue, is the thesis' equation.

    Raises ValueError for `a` outside [0, 1], shapes that do not match, or an unknown direction.
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a must be in [0, 1], got {a}")
    images, captions = (
        contrastive_loss(features, dialogue_features, logit_scale, direction=direction)
        for features in (image_features, caption_features)
    )
    return {"image_dialogue_loss": a * images, "caption_dialogue_loss": (1 - a) * captions}
