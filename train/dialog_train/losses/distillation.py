"""Distillation of similarities: a tuned text tower ranks images and texts as the untuned one did."""

import torch
from torch import Tensor

from dialog_train.losses.blocks import Statistics, over_rows, require_pairs
from dialog_train.processes import gather_columns, place


def similarity_distillation(
    image_features: Tensor, text_features: Tensor, base_features: Tensor, logit_scale: Tensor | float
) -> Tensor:
    """Mean Kullback-Leibler divergence of the softmax over images of each text, and over texts of each image.

    L = 1/2 mean_i KL( softmax_j s b_ij || softmax_j s t_ij ) + 1/2 mean_j KL( softmax_i s b_ij || softmax_i s t_ij )

    b_ij = base_i . image_j and t_ij = text_i . image_j are similarities of the untuned and the tuned tower for the same
    M texts with N images, s is the untuned model's logit scale. Similarities, and not vectors, are held: what no image
    sees of a vector may change. Image to text and text to image as in ZSCL (arXiv 2303.06628). `image_features`
    (N / processes, D), `text_features` and `base_features` (M / processes, D) are the rows of this process, unit-norm;
    only `text_features` has a gradient: the image tower is frozen.

    Raises ValueError for shapes that do not match.
    """
    require_pairs(base_features, text_features)
    if image_features.ndim != 2 or image_features.shape[1] != text_features.shape[1]:
        raise ValueError(
            f"images and texts must be (N, D) and (M, D), got {tuple(image_features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
    images, rows = gather_columns(image_features.detach()), [text_features, base_features.detach()]
    scale = torch.as_tensor(logit_scale, dtype=images.dtype, device=images.device).detach()

    def sums_of_columns(_first: int, base: Tensor) -> Statistics:
        return Statistics((), ((scale * (base @ images.T)).logsumexp(0),))

    with torch.no_grad():
        base_columns = over_rows(sums_of_columns, rows[1:], len(images)).log_sums[0]  # (N,)

    def block(_first: int, texts: Tensor, base: Tensor) -> Statistics:
        found, wanted = (scale * (of @ images.T) for of in (texts, base))  # (B, N)
        of_rows = wanted.log_softmax(1)
        by_rows = (of_rows.exp() * (of_rows - found.log_softmax(1))).double().sum()
        # The sum over the texts of each image is not yet known here: the logarithm of its sum is added below.
        of_columns = wanted - base_columns
        by_columns = (of_columns.exp() * (of_columns - found)).double().sum()
        return Statistics((by_rows, by_columns), (found.logsumexp(0),))

    (by_rows, by_columns), (columns,) = over_rows(block, rows, len(images))
    of_texts = by_rows / (len(text_features) * place()[1])
    of_images = (by_columns + columns.double().sum()) / len(images)
    return ((of_texts + of_images) / 2).to(image_features.dtype)
