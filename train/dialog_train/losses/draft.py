"""DRAFT: contrastive losses of captions and dialogues with images, and the discrepancy of their similarities (MMD)."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dialog_train.losses.base import Direction, MmdOver
from dialog_train.losses.blocks import Statistics, matching, over_rows, require_pairs
from dialog_train.losses.contrastive import require_direction, softmax_loss, softmax_statistics
from dialog_train.losses.mmd import (
    ScalarKernel,
    histogram,
    median_of_histogram,
    median_sigma_rows,
    mmd2_rbf_rows,
)
from dialog_train.processes import gather_columns

Sigma = float | Sequence[float] | Literal["median"]

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
    mmd_sigma: Sigma = 0.2,
    mmd_over: MmdOver = "scalars",
    mmd_root: bool = False,
    mmd_detach_captions: bool = False,
) -> dict[str, Tensor]:
    """The three parts of the DRAFT loss, already weighted; their sum is the loss.

    L = a CE(I, T(z)) + (1 - a) CE(I, T(y)) + mmd_weight MMD^2(s_caption, s_dialogue),  s_ij = I(x_j) . T(.)_i

    All features are the rows (N / processes, D) of this process, unit-norm; row i of each belongs to image i.

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
    require_direction(direction)
    for texts in (caption_features, dialogue_features):
        require_pairs(image_features, texts)
    images, texts = gather_columns(image_features), [caption_features, dialogue_features]
    count = len(images)
    own_mmd = {} if mmd_over == "rows" or not mmd_weight else _kernels(images, texts, mmd_sigma, mmd_over)

    def block(first: int, *texts: Tensor) -> Statistics:
        similarities = [of @ images.T for of in texts]
        found = [softmax_statistics(of, logit_scale, first, direction) for of in similarities]
        captions, dialogues = similarities
        samples = [captions.detach() if mmd_detach_captions else captions, dialogues]
        mmd = [_added(over, kernel.sums, of, first) for over, kernel in own_mmd.items() for of in samples]
        return Statistics((*found[0].sums, *found[1].sums, *mmd), (*found[0].log_sums, *found[1].log_sums))

    sums, log_sums = over_rows(block, texts, count)
    by_captions, by_dialogues = (
        softmax_loss(Statistics(sums[2 * of : 2 * of + 2], log_sums[of : of + 1]), count, direction) for of in (0, 1)
    )
    if not mmd_weight:
        mmd2 = torch.zeros_like(by_captions)
    elif mmd_over == "rows":
        mmd2 = _mmd2_rows(images, texts, mmd_sigma, mmd_detach_captions)
    else:
        means = zip(own_mmd.items(), sums[4::2], sums[5::2], strict=True)
        mmd2 = torch.stack(
            [of.mmd2(x / _size(over, count), y / _size(over, count)) for (over, of), x, y in means]
        ).sum()
    if mmd_root and mmd_weight:
        mmd2 = torch.sqrt(mmd2.clamp_min(0) + _SQRT_EPS)
    losses = {
        "image_dialogue_loss": a * by_dialogues,
        "image_caption_loss": (1 - a) * by_captions,
        "mmd_loss": mmd_weight * mmd2,
    }
    return {name: loss.to(images.dtype) for name, loss in losses.items()}


def _kernels(images: Tensor, texts: Sequence[Tensor], sigma: Sigma, over: MmdOver) -> dict[str, ScalarKernel]:
    """The kernel for each sample of similarities: "scalars", "positives" or "negatives"."""
    samples = ["positives", "negatives"] if over == "apart" else [over]
    if not isinstance(sigma, str):
        sigmas = [sigma] if isinstance(sigma, int | float) else sigma
        return dict.fromkeys(samples, ScalarKernel(sigmas, images.dtype))

    def block(first: int, *texts: Tensor) -> Statistics:
        similarities = [of @ images.T for of in texts]
        counts = ([_added(over, histogram, of, first) for of in similarities] for over in samples)
        return Statistics(tuple(torch.stack(of_texts).sum(0) for of_texts in counts))

    with torch.no_grad():
        counts = over_rows(block, texts, len(images)).sums
    medians = (median_of_histogram(of) for of in counts)
    return {over: ScalarKernel([median], images.dtype) for over, median in zip(samples, medians, strict=True)}


def _added(over: str, added: Callable[[Tensor], Tensor], similarities: Tensor, first: int) -> Tensor:
    """A sum over a sample of a block of similarities; `added` gives the sum over all values of a tensor."""
    if over == "scalars":
        return added(similarities)
    positives = added(matching(similarities, first))
    return positives if over == "positives" else added(similarities) - positives


def _size(over: str, count: int) -> int:
    return {"scalars": count * count, "positives": count, "negatives": count * (count - 1)}[over]


def _mmd2_rows(images: Tensor, texts: Sequence[Tensor], sigma: Sigma, detach_captions: bool) -> Tensor:
    gram = images.T @ images
    captions, dialogues = texts
    if detach_captions:
        captions = captions.detach()
    if isinstance(sigma, str):
        sigmas: Sequence[float] = [median_sigma_rows(captions, dialogues, gram=gram)]
    else:
        sigmas = [sigma] if isinstance(sigma, int | float) else sigma
    return torch.stack([mmd2_rbf_rows(captions, dialogues, s, gram=gram) for s in sigmas]).mean()
