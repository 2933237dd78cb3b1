"""Squared maximum mean discrepancy under an RBF kernel (Gretton et al. 2012), in linear time for scalars.

The pairwise form over N^2 similarities would cost N^4 kernel evaluations per step. Instead, each sample is represented
by sums of K polynomials (see `chebyshev`), which are equivalent to weights w of K nodes z on the interval, so that

    MMD^2 = sum_ij (w_x - w_y)_i (w_x - w_y)_j k(z_i, z_j),   k(a, b) = exp(-(a - b)^2 / (2 sigma^2)).
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dialog_train.losses.blocks import Statistics, over_rows
from dialog_train.losses.chebyshev import REACH, count_for, nodes_of, polynomial_sums, to_nodes
from dialog_train.processes import gather_columns, gather_rows, place

_BINS = 1 << 16
_LEAST_SIGMA = 1e-3


def mmd2_rbf(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Biased MMD^2 between two samples of scalars in [-1, 1], kernel exp(-(x - y)^2 / (2 sigma^2)).

    `x` and `y` may differ in size and have any shape; they are flattened. The value agrees with the pairwise form to
    1e-6 for sigma from 0.02 to 1, its gradient to 1e-6 of 1 / (sigma n), the most that one of n values can change it.
    Memory use does not grow with 1 / sigma. There is no second derivative.

    Raises ValueError for empty samples or a sigma that is not positive.
    """
    if not x.numel() or not y.numel():
        raise ValueError(f"both samples need at least one value, got {x.numel()} and {y.numel()}")
    kernel = ScalarKernel([sigma], x.dtype)
    return kernel.mmd2(kernel.sums(x) / x.numel(), kernel.sums(y) / y.numel()).to(x.dtype)


class ScalarKernel:
    """The mean of RBF kernels of several widths, for samples that are known by sums which can be added."""

    def __init__(self, sigmas: Sequence[float], dtype: torch.dtype) -> None:
        """`dtype` is the values' type, float32 or float64. Raises ValueError for a width that is not positive."""
        for sigma in sigmas:
            if not sigma > 0:
                raise ValueError(f"sigma must be positive, got {sigma}")
        self._sigmas, self._least = tuple(sigmas), min(sigmas)
        self._count = count_for(self._least, dtype)

    def sums(self, values: Tensor) -> Tensor:
        """The sums (K,), float64, of values of any shape."""
        return polynomial_sums(values, self._count, self._least)

    def mmd2(self, mean_x: Tensor, mean_y: Tensor) -> Tensor:
        """MMD^2 in float64, from the sums of each sample divided by its number of values."""
        difference = mean_x - mean_y
        return difference @ (_between_polynomials(self._sigmas, self._count, difference.device) @ difference)


@lru_cache(4)
def _between_polynomials(sigmas: tuple[float, ...], count: int, device: torch.device) -> Tensor:
    """(K, K) float64: the kernel as a bilinear form of sums of polynomials."""
    nodes = REACH * nodes_of(count)
    squared = (nodes[:, None] - nodes).square()
    kernel = torch.stack([torch.exp(-squared / (2 * sigma**2)) for sigma in sigmas]).mean(0)
    return (to_nodes(count).T @ kernel @ to_nodes(count)).to(device)


def mmd2_rbf_rows(x: Tensor, y: Tensor, sigma: float, *, gram: Tensor | None = None) -> Tensor:
    """Biased MMD^2 between two samples of vectors, (n, D) and (m, D) in each process, over all pairs of vectors.

    With `gram` G (D, D) the squared length of a vector v is v . G v. With G = images.T @ images the distance of two
    texts is that of their rows of similarities with all images. Such distances grow with the square root of the number
    of images, so sigma must grow too; otherwise the gradient vanishes. Memory use is linear in n and m.
    """
    all_x, all_y = gather_columns(x), gather_columns(y)

    def mean_kernel(rows: Tensor, columns: Tensor) -> Tensor:
        def block(first: int, rows: Tensor) -> Statistics:
            distances = _squared_distances(rows, columns, gram)
            return Statistics(sums=(torch.exp(-distances / (2 * sigma**2)).sum(),))

        # Each process has the same number of rows.
        count = len(rows) * place()[1]
        return over_rows(block, [rows], len(columns)).sums[0] / (count * len(columns))

    return mean_kernel(x, all_x) + mean_kernel(y, all_y) - 2 * mean_kernel(x, all_y)


def _squared_distances(a: Tensor, b: Tensor, gram: Tensor | None) -> Tensor:
    a_g, b_g = (a, b) if gram is None else (a @ gram, b @ gram)
    lengths = (a_g * a).sum(1)[:, None] + (b_g * b).sum(1)
    return torch.addmm(lengths, a_g, b.T, alpha=-2).clamp_min(0)


def median_sigma(x: Tensor, y: Tensor, *, values: int = 2048) -> float:
    """The median heuristic: the median distance between two of the pooled scalars in [-1, 1], without a gradient.

    It uses `values` of them, evenly spaced in sorted order, to the accuracy of `histogram`. The result is at least
    1e-3. It waits for the device.
    """
    return median_of_histogram(histogram(x) + histogram(y), values=values)


def histogram(values: Tensor) -> Tensor:
    """Numbers of scalars in [-1, 1] in 65,536 bins of a width of 3e-5: (65536,) float64. Histograms can be added."""
    # histc counts in the values' type; float32 counts exactly up to 2^24.
    chunks = values.detach().reshape(-1).split(1 << 24)
    return torch.stack([torch.histc(chunk, _BINS, -REACH, REACH).double() for chunk in chunks]).sum(0)


def median_of_histogram(counts: Tensor, *, values: int = 2048) -> float:
    """`median_sigma` of the scalars that `histogram` counted; scalars within a bin count as evenly spaced."""
    until = counts.cumsum(0)
    total = int(until[-1])
    chosen = torch.linspace(0, total - 1, min(values, total), dtype=torch.float64, device=counts.device).round()
    bins = torch.searchsorted(until, chosen, right=True).clamp_max(_BINS - 1)
    within = (chosen - (until[bins] - counts[bins]) + 0.5) / counts[bins]
    return _median_distance(((bins + within) * (2 * REACH / _BINS) - REACH)[:, None])


def median_sigma_rows(x: Tensor, y: Tensor, *, gram: Tensor | None = None, values: int = 2048) -> float:
    """Like `median_sigma`, for vectors (n, D) and (m, D) in each process: uses `values` of the pooled ones, evenly
    spaced. `gram` is as in `mmd2_rbf_rows`.
    """
    pooled = torch.cat([gather_rows(x.detach()), gather_rows(y.detach())])
    # float32 cannot represent positions of 2^24 and more exactly.
    count = min(values, len(pooled))
    chosen = torch.linspace(0, len(pooled) - 1, count, dtype=torch.float64, device=pooled.device).round().long()
    vectors = pooled[chosen].double()
    if gram is not None:
        # Vectors whose plain distances are those under `gram`.
        scales, axes = torch.linalg.eigh(gram.detach().double())
        vectors = vectors @ axes * scales.clamp_min(0).sqrt()
    return _median_distance(vectors)


def _median_distance(points: Tensor) -> float:
    distances = torch.pdist(points)
    return max(float(distances.median()), _LEAST_SIGMA) if len(distances) else _LEAST_SIGMA
