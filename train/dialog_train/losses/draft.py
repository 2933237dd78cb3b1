"""DRAFT: contrastive losses of captions and dialogues with images, and the discrepancy of their similarities (MMD)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dialog_train.losses.base import Direction, MmdOver
from dialog_train.losses.contrastive import contrastive_loss
from dialog_train.losses.mmd import median_sigma, median_sigma_rows, mmd2_rbf, mmd2_rbf_rows

# The gradient of sqrt is singular at 0, where the two distributions agree.
_SQRT_EPS = 1e-8


def draft_loss(
    image_features: Tensor,
    caption_features: Tensor,
    dialogue_features: Tensor,
    logit_scale: Tensor | float,
    *,
    a: float = 0.5,
    direction: Direction = "symmetric",
    mmd_weight: float = 1.0,
    mmd_sigma: float | Sequence[float] | Literal["median"] = 0.2,
    mmd_over: MmdOver = "scalars",
    mmd_root: bool = False,
    mmd_detach_captions: bool = False,
) -> dict[str, Tensor]:
    """The three parts of the DRAFT loss, already weighted; their sum is the loss.

    L = a CE(I, T(z)) + (1 - a) CE(I, T(y)) + mmd_weight MMD^2(s_caption, s_dialogue),  s_ij = I(x_j) . T(.)_i

    All features are (N, D), unit-norm; row i of each belongs to image i. With several processes they are the gathered
    global batch.

    direction   of the contrastive parts; `t2i` is the thesis' eq. 4.4.1
    mmd_sigma   in units of cosine similarity, independent of the logit scale; several widths are averaged;
                "median" is the median heuristic. Rows are about sqrt(N) times as far apart as scalars
    mmd_over    the samples of the two distributions: `scalars` all N^2 similarities (eq. 4.4.3), `rows` each row as
                one sample, `positives` the N matching pairs, `negatives` the other pairs, `apart` the sum of the
                losses of the last two
    mmd_root    sqrt(MMD^2 + eps), the norm as printed in eq. 4.4.3
    mmd_detach_captions   the MMD moves dialogues towards captions, but not captions towards dialogues

    Raises ValueError for `a` outside [0, 1], shapes that do not match, or an unknown option.
    """
    if not 0 <= a <= 1:
        raise ValueError(f"a must be in [0, 1], got {a}")
    if mmd_over not in get_args(MmdOver):
        raise ValueError(f"mmd_over must be one of {', '.join(get_args(MmdOver))}, got {mmd_over!r}")
    losses = {
        "image_dialogue_loss": a
        * contrastive_loss(image_features, dialogue_features, logit_scale, direction=direction),
        "image_caption_loss": (1 - a)
        * contrastive_loss(image_features, caption_features, logit_scale, direction=direction),
    }
    if not mmd_weight:
        return {**losses, "mmd_loss": torch.zeros_like(losses["image_caption_loss"])}
    captions = caption_features @ image_features.T  # (texts, images)
    dialogues = dialogue_features @ image_features.T
    if mmd_detach_captions:
        captions = captions.detach()
    parts = ["positives", "negatives"] if mmd_over == "apart" else [mmd_over]
    mmd2 = torch.stack([_mmd2(captions, dialogues, mmd_sigma, part) for part in parts]).sum()
    discrepancy = torch.sqrt(mmd2.clamp_min(0) + _SQRT_EPS) if mmd_root else mmd2
    return {**losses, "mmd_loss": mmd_weight * discrepancy}


def _mmd2(captions: Tensor, dialogues: Tensor, sigma: float | Sequence[float] | Literal["median"], over: str) -> Tensor:
    x, y = (_samples(similarities, over) for similarities in (captions, dialogues))
    if isinstance(sigma, str):
        sigmas: Sequence[float] = [(median_sigma_rows if over == "rows" else median_sigma)(x, y)]
    else:
        sigmas = [sigma] if isinstance(sigma, int | float) else sigma
    mmd2 = mmd2_rbf_rows if over == "rows" else mmd2_rbf
    return torch.stack([mmd2(x, y, s) for s in sigmas]).mean()


def _samples(similarities: Tensor, over: str) -> Tensor:
    if over == "positives":
        return similarities.diagonal()
    if over == "negatives":
        n = len(similarities)
        return similarities[~torch.eye(n, dtype=torch.bool, device=similarities.device)]
    return similarities
