"""What a candidate scores without the image at hand: `debias` subtracts it.

    mean-image   its cosine with the mean of the evaluation's images (of unit length)
    text         its cosine with the question alone
    null-image   its mean cosine with three images of Gaussian noise (arXiv 2306.01879)
    nearest      its mean cosine with the 128 nearest of reference images (NNN, arXiv 2410.24114)

Of the references only the nearest `k` count, so the first, the third and the last differ only in the reference images.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from dialog_eval.models import Models

NEIGHBOURS = 128
"""NNN's k."""
NEAREST_WEIGHT = 0.75
"""NNN's weight."""

_ROWS_PER_CHUNK = 1024
_NOISE_IMAGES = 3
_NOISE_MEAN, _NOISE_DEVIATION = 0.4, 0.25
_NOISE_SIZE = 224


def mean_of_nearest(vectors: Tensor, references: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The mean cosine (N,) of each vector with its `k` nearest references; with all if there are fewer.

    `vectors`: (N, D), `references`: (R, D), unit-norm. Memory: about 1024 * R numbers.
    """
    k = min(k, len(references))
    parts = vectors.split(_ROWS_PER_CHUNK)
    return torch.cat([(part @ references.T).topk(k, dim=1).values.mean(1) for part in parts])


def null_images(models: "Models") -> list[Tensor]:
    """The vectors (3, D) of images of Gaussian noise, for each image tower."""
    images = [_noise(seed) for seed in range(_NOISE_IMAGES)]
    return [
        models.encode_images(torch.stack([clip.preprocess(image) for image in images]), tower)
        for tower, clip in enumerate(models.image_towers)
    ]


def _noise(seed: int) -> Image.Image:
    drawn = np.random.default_rng(seed).normal(_NOISE_MEAN, _NOISE_DEVIATION, (_NOISE_SIZE, _NOISE_SIZE, 3))
    return Image.fromarray((255 * drawn.clip(0, 1)).round().astype(np.uint8))
