"""The sigmoid loss of SigLIP (arXiv 2303.15343)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dialog_train.losses.base import LOSSES, PairLoss


def siglip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> Tensor:
    """Classifies each pair of N images and N texts as matching or not.

    L = -1/N sum_ij log sigmoid(z_ij (logit_scale x_i . y_j + logit_bias)),   z_ij = 1 for i = j, -1 otherwise

    `image_features` x and `text_features` y are (N, D), unit-norm; pair i matches. The sum over N^2 pairs is divided by
    N. There are N - 1 negatives per positive; an initial bias of about -10 compensates for that.

    Raises ValueError for shapes that do not match.
    """
    if image_features.shape != text_features.shape or image_features.ndim != 2:
        raise ValueError(
            f"features must be two (N, D) tensors of one shape, got {tuple(image_features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
    logits = logit_scale * image_features @ text_features.T + logit_bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -logsigmoid(signs * logits).sum() / len(logits)


# The initial bias predicts that no pair matches; the initial logit scale is low (section 3.2).
LOSSES.register("siglip")(
    PairLoss(
        description="SigLIP: a sigmoid for each pair, with a learned bias (arXiv 2303.15343)",
        function=siglip_loss,
        label="siglip_loss",
        init_logit_scale=math.log(10),
        init_logit_bias=-10.0,
    )
)
