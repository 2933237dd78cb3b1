"""The loss of truths: what is true of an image against what is false of any image of the batch."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dialog_train.losses.blocks import Statistics, over_rows
from dialog_train.processes import gather_columns, gather_rows


def truth_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, true: Tensor, false: Tensor
) -> Tensor:
    """Mean over all pairs of a true and a false text, each scored by the image that it is about.

    L = mean_(i,k) in true, (j,l) in false  log(1 + exp( s x_j . t_jl - s x_i . t_ik )),  s = logit_scale

    A choice among the answers to one question, as in `foil_loss`, leaves open whether a true answer to one question
    scores higher than a false one to another. This loss ranks all of them (RankNet, Burges et al. 2005), so that
    statements about different things can be compared.

    `image_features` (N / processes, D) and `text_features` (N / processes, K, D) are the rows of this process,
    unit-norm; every process has as many. `true` and `false` (N / processes, K) bool say what each text is; texts that
    are neither do not count. Without a true or a false text the loss is 0.

    Raises ValueError for shapes that do not match.
    """
    count, texts = len(image_features), text_features.shape[1:2]
    if image_features.ndim != 2 or text_features.shape != (count, *texts, image_features.shape[-1]):
        raise ValueError(
            f"features must be (N, D) and (N, K, D), got {tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    if {true.shape, false.shape} != {text_features.shape[:2]}:
        raise ValueError(f"true and false must be (N, K), got {tuple(true.shape)} and {tuple(false.shape)}")
    scores = torch.einsum("nd,nkd->nk", image_features, text_features) * logit_scale
    wrong = gather_columns(scores)[gather_rows(false.float()) > 0]

    def block(_first: int, scores: Tensor, true: Tensor) -> Statistics:
        losses = softplus(wrong[None] - scores[true][:, None])
        return Statistics((losses.sum(1).double().sum(), true.double().sum() * len(wrong)))

    total, pairs = over_rows(block, [scores, true], max(1, len(wrong) * true.shape[1])).sums
    return (total / pairs.clamp_min(1)).to(scores.dtype)
