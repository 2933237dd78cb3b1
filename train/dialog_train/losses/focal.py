"""The focal contrastive loss of RO-ViT and MaMMUT (arXiv 2305.07011, 2303.16839)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dialog_train.losses.base import LOSSES, PairLoss


def focal_contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, *, gamma: float = 2.0
) -> Tensor:
    """Classifies each pair of N images and N texts as matching or not; easy pairs get a lower weight.

    L = -1/N sum_ij (1 - p_ij)^gamma log p_ij
    p_ij = sigmoid(logit_scale x_i . y_j) for i = j, and 1 - sigmoid(logit_scale x_i . y_j) otherwise

    `image_features` x and `text_features` y are (N, D), unit-norm; pair i matches. With gamma = 0 it is SigLIP's loss
    without a bias. The papers average two directions, which have the same terms.

    Raises ValueError for shapes that do not match or a negative gamma.
    """
    if image_features.shape != text_features.shape or image_features.ndim != 2:
        raise ValueError(
            f"features must be two (N, D) tensors of one shape, got {tuple(image_features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    logits = logit_scale * image_features @ text_features.T
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    log_p = logsigmoid(signs * logits)
    # 1 - p, computed without cancellation.
    weights = (gamma * logsigmoid(-signs * logits)).exp()
    return -(weights * log_p).sum() / len(logits)


LOSSES.register("focal")(
    PairLoss(
        description="MaMMUT: a sigmoid for each pair, in which well told pairs count less (arXiv 2303.16839)",
        function=focal_contrastive_loss,
        options=("gamma",),
    )
)
