"""Diagnostics of vector spaces: alignment, uniformity, and the distance of distributions of similarities.

Each function gives one value per item, whose mean is the diagnostic. Alignment is a mean already. For the others, the
value of an item is the diagnostic plus the item's own influence on it (the infinitesimal jackknife; Jaeckel, 1972), so
that the bootstrap interval of the values is that of the diagnostic, and models can be compared item by item.
"""

import torch
from torch import Tensor

SIGMA = 0.2
"""Width of the kernel on similarities, as in the training with MMD."""

_TIMES = 2.0
_BINS = 1 << 11
_CHUNK = 1024


def alignment(images: Tensor, texts: Tensor) -> Tensor:
    """The squared distances (N,) of unit vectors (N, D) that belong together (arXiv 2005.10242, equation 1)."""
    return (images.double() - texts.double()).square().sum(1)


def uniformity(vectors: Tensor) -> Tensor:
    """Values (N,) of the logarithm of the mean of exp(-2 |u - v|^2) over all pairs of unit vectors (N, D).

    0 if all vectors are equal; the lower, the more evenly they fill the sphere (arXiv 2005.10242, equation 2). A vector
    is not paired with itself. Raises ValueError for fewer than two vectors.
    """
    count = len(vectors)
    if count < 2:
        raise ValueError(f"uniformity is of pairs of vectors, got {count}")
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    # |u - v|^2 = 2 - 2 u.v; the pair of a vector with itself has exp(0) = 1.
    sums = [torch.exp(2 * _TIMES * (some @ vectors.T - 1)).double().sum(1) - 1 for some in vectors.split(_CHUNK)]
    means = torch.cat(sums) / (count - 1)
    whole = means.mean()
    # A vector is in the pairs of its own and in one pair of each other: hence the 2.
    return whole.log() + 2 * (means - whole) / whole


def cosine_with_others(vectors: Tensor, owners: Tensor) -> Tensor:
    """Values (N,) of the mean cosine of two unit vectors (N, D) of different owners; `owners`: (N,), whole numbers.

    With texts' vectors and the images that they are about, this is what texts have in common whatever they say: if it
    is higher than the cosines with their images, the modalities lie apart (arXiv 2203.02053). Raises ValueError if all
    vectors have one owner.
    """
    _, owners = owners.to(vectors.device).unique(return_inverse=True)
    sums = vectors.new_zeros(int(owners.max()) + 1, vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, owners, vectors.double())
    if len(sums) < 2:
        raise ValueError("cosines with others need vectors of two owners")
    others = (sums.sum(0) - sums)[owners]
    count = len(vectors) - owners.bincount()[owners]
    totals = (vectors.double() * others).sum(1)
    whole = totals.sum() / count.sum()
    # A vector is in the pairs of its own and in those of each other: hence the 2.
    return whole + 2 * (totals - whole * count) * len(vectors) / count.sum()


def mmd2_of_similarities(
    images: Tensor, texts: Tensor, other_images: Tensor, other_texts: Tensor, *, sigma: float = SIGMA
) -> Tensor:
    """Values (images,) of MMD^2 between two distributions of similarities, those of all images with all texts.

    `images` and `other_images` (images, D) are unit vectors of the same images, by one or two models; `texts` and
    `other_texts` (texts, D) may differ in number. The kernel is exp(-(s - t)^2 / (2 sigma^2)); MMD^2 is the biased
    estimate, 0 for equal distributions. Similarities are counted in bins of 1e-3, which needs 32 KB an image.
    """
    mine, others = (_histogram(*pair) for pair in ((images, texts), (other_images, other_texts)))
    centres = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (2 / _BINS) - 1
    kernel = torch.exp(-((centres[:, None] - centres) ** 2) / (2 * sigma**2))
    difference = mine.sum(0) / mine.sum() - others.sum(0) / others.sum()
    witness = kernel @ difference
    whole = difference @ witness
    influence = mine @ witness / mine.sum(1) - others @ witness / others.sum(1)
    return whole + 2 * (influence - influence.mean())


def _histogram(images: Tensor, texts: Tensor) -> Tensor:
    """The number of each image's similarities in each bin of [-1, 1], (images, bins), float64 on the CPU."""
    counts = torch.zeros(len(images), _BINS, dtype=torch.float64)
    for start in range(0, len(images), _CHUNK):
        similarities = images[start : start + _CHUNK] @ texts.T
        bins = ((similarities.double() + 1) * (_BINS / 2)).long().clamp_(0, _BINS - 1).cpu()
        counts[start : start + _CHUNK].scatter_add_(1, bins, torch.ones((), dtype=torch.float64).expand_as(bins))
    return counts
