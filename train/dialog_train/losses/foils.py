"""The loss of foils: given an image, the right text against texts that are wrong about the same image."""

import torch
from torch import Tensor

from dialog_train.losses.blocks import Statistics, over_rows


def foil_loss(
    image_features: Tensor, candidate_features: Tensor, logit_scale: Tensor | float, there: Tensor | None = None
) -> Tensor:
    """Mean cross entropy of N images over their own candidates t_i0 (right), t_i1, ..., t_iK (foils).

    L = mean_i -log( exp(s x_i . t_i0) / sum_k exp(s x_i . t_ik) ),  s = logit_scale

    This is the softmax of a multiple choice, as NegBench trains it (arXiv 2501.09425): candidates of different images
    are not compared. `image_features` (N / processes, D) and `candidate_features` (N / processes, 1 + K, D) are the
    rows of this process, unit-norm; every process has as many. `there` (N / processes, 1 + K) bool says which
    candidates exist; None: all. The mean is over the images of all processes that have a foil; without one it is 0.

    Raises ValueError for shapes that do not match.
    """
    count, candidates = len(image_features), candidate_features.shape[1:2]
    if image_features.ndim != 2 or candidate_features.shape != (count, *candidates, image_features.shape[-1]):
        raise ValueError(
            f"features must be (N, D) and (N, 1 + K, D), got {tuple(image_features.shape)} and "
            f"{tuple(candidate_features.shape)}"
        )
    if there is None:
        there = torch.ones(candidate_features.shape[:2], dtype=torch.bool, device=image_features.device)
    if there.shape != candidate_features.shape[:2]:
        raise ValueError(f"there must be (N, 1 + K), got {tuple(there.shape)}")

    def block(_first: int, images: Tensor, texts: Tensor, there: Tensor) -> Statistics:
        logits = torch.einsum("nd,nkd->nk", images, texts) * logit_scale
        # Finite, because a candidate that does not exist has a gradient of 0, not of NaN.
        logits = logits.masked_fill(~there, torch.finfo(logits.dtype).min)
        used = there[:, 0] & there[:, 1:].any(1)
        losses = (logits.logsumexp(1) - logits[:, 0]).double()
        return Statistics((torch.where(used, losses, 0).sum(), used.double().sum()))

    total, used = over_rows(block, [image_features, candidate_features, there], candidate_features.shape[1]).sums
    return (total / used.clamp_min(1)).to(image_features.dtype)
