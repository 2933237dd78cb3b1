"""Squared maximum mean discrepancy under an RBF kernel (Gretton et al. 2012), in linear time for scalars.

On a bounded interval the kernel exp(-d^2 / (2 sigma^2)) is, except for its repetitions with period P, a Fourier series

    k(d) = sum_k w_k cos(theta_k d),   theta_k = 2 pi k / P,
    w_0 = sqrt(2 pi) sigma / P,        w_k = 2 w_0 exp(-2 (pi k sigma / P)^2),

so that MMD^2 = sum_k w_k |mean_x e^(i theta_k x) - mean_y e^(i theta_k y)|^2: K frequencies replace all pairs. The
pairwise form over N^2 similarities would cost N^4 kernel evaluations per step.
"""

import math
from typing import Any

import torch
from torch import Tensor

# Cosines are within [-1, 1]; rounding may exceed that slightly.
_RANGE = 2.0 + 1e-3
# Error bound relative to the kernel's peak: from repetitions of the kernel and from omitted frequencies.
_TAIL = 1e-13
# Values per chunk: on a CPU they fit its caches; on a GPU they are enough to hide the cost of launching kernels.
_CHUNK, _CHUNK_GPU = 1 << 18, 1 << 22


def mmd2_rbf(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Biased MMD^2 between two samples of scalars in [-1, 1], kernel exp(-(x - y)^2 / (2 sigma^2)).

    `x` and `y` may differ in size and have any shape; they are flattened. The value agrees with the pairwise form to
    1e-6 for sigma from 0.02 to 1. Sums are computed in float64; the result has the inputs' type. Memory use does not
    grow with the number of frequencies. There is no second derivative.

    Raises ValueError for empty samples or a sigma that is not positive.
    """
    if not x.numel() or not y.numel():
        raise ValueError(f"both samples need at least one value, got {x.numel()} and {y.numel()}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    period, weights = _series(sigma)
    difference = _CharacteristicMean.apply(x, period, len(weights)) - _CharacteristicMean.apply(y, period, len(weights))
    return (weights.to(x.device)[:, None] * difference.square()).sum().to(x.dtype)


def _series(sigma: float) -> tuple[float, Tensor]:
    """The period P and the weights w_0 ... w_{K-1} (K,) in float64."""
    reach = math.sqrt(-2 * math.log(_TAIL))
    period = _RANGE + reach * sigma
    count = math.ceil(reach * period / (2 * math.pi * sigma)) + 1
    k = torch.arange(count, dtype=torch.float64)
    weights = 2 * math.sqrt(2 * math.pi) * sigma / period * torch.exp(-2 * (math.pi * k * sigma / period) ** 2)
    weights[0] /= 2
    return period, weights


class _CharacteristicMean(torch.autograd.Function):
    """x (any shape) -> mean of (cos theta_k x, sin theta_k x), (K, 2) in float64.

    Powers of e^(i theta_1 x) are computed by repeated multiplication, chunk by chunk, and again in the backward pass:
    autograd would keep all K powers of every value.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, period: float, count: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.period, ctx.count = period, count
        total = torch.zeros(count, 2, dtype=torch.float64, device=x.device)
        for chunk in _chunks(x.detach()):
            angle = chunk.double() * (2 * math.pi / period)
            step = torch.polar(torch.ones_like(angle), angle)
            power = torch.ones_like(step)
            total[0, 0] += len(chunk)
            for k in range(1, count):
                power = power * step
                total[k] += torch.view_as_real(power.sum())
        return total / x.numel()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        theta = 2 * math.pi / ctx.period
        # d/dx (c cos kt + s sin kt) = k theta (s cos kt - c sin kt): the real part of (s + i c) e^(ikt) times k theta.
        frequencies = theta * torch.arange(ctx.count, dtype=torch.float64, device=x.device)
        cosine, sine = gradients[0].unbind(-1)
        coefficients = torch.complex(sine, cosine) * frequencies / x.numel()
        pieces: list[Tensor] = []
        for chunk in _chunks(x):
            angle = chunk.double() * theta
            step = torch.polar(torch.ones_like(angle), angle)
            # Horner's scheme: one multiplication and one addition per frequency.
            series = torch.zeros_like(step)
            for coefficient in reversed(coefficients.unbind()):
                series = series * step + coefficient
            pieces.append(series.real)
        return torch.cat(pieces).reshape(x.shape).to(x.dtype), None, None


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    return x.reshape(-1).split(_CHUNK if x.device.type == "cpu" else _CHUNK_GPU)


def mmd2_rbf_rows(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Biased MMD^2 between two samples of vectors, (n, D) and (m, D), with n^2 + m^2 + n m kernel evaluations.

    For an N x N matrix of similarities it takes each row as one sample. Distances between rows grow with sqrt(D), so
    sigma must grow too; otherwise the gradient vanishes.
    """

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
        return torch.exp(-squared.clamp_min(0) / (2 * sigma**2)).mean()

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def median_sigma(x: Tensor, y: Tensor, *, values: int = 2048) -> float:
    """The median heuristic: the median distance between two of the pooled scalars, without a gradient.

    It uses `values` of them, evenly spaced in sorted order. The result is at least 1e-3.
    """
    pooled = torch.cat([x.detach().reshape(-1), y.detach().reshape(-1)]).double().sort().values
    return _median_distance(pooled[:, None], values)


def median_sigma_rows(x: Tensor, y: Tensor, *, values: int = 2048) -> float:
    """Like `median_sigma`, for vectors (n, D) and (m, D): uses `values` of the pooled ones, evenly spaced."""
    return _median_distance(torch.cat([x.detach(), y.detach()]).double(), values)


def _median_distance(pooled: Tensor, values: int) -> float:
    # float32 cannot represent positions of 2^24 and more exactly.
    last, count = len(pooled) - 1, min(values, len(pooled))
    chosen = torch.linspace(0, last, count, dtype=torch.float64, device=pooled.device).round().long()
    distances = torch.pdist(pooled[chosen])
    return max(float(distances.median()), 1e-3) if len(distances) else 1e-3
