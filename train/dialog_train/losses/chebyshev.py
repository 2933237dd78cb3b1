"""Sums of Chebyshev polynomials over many values, which replace the values in sums of a smooth function.

A function f that is smooth on the scale of sigma is, on [-1, 1], a series of K = O(1 / sigma) polynomials,

    f(x) = sum_k c_k T_k(x),    T_0 = 1,  T_1 = x,  T_k = 2 x T_(k-1) - T_(k-2),

so the K sums of T_k(x) over all x determine the sum of f(x). The recurrence costs one multiplication and one addition
per value and polynomial, without trigonometric functions, and is evaluated in the values' own precision.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dialog_train.losses.kernels import kernels_for

REACH = 1.001
"""Values are within [-REACH, REACH]: cosines, which rounding takes slightly beyond 1."""
# What the polynomials left out may contribute, relative to the kernel's peak.
_TAIL = {torch.float32: 1e-8, torch.float64: 1e-12}
# Values per chunk: three buffers fit a core's cache; on a GPU they hide the cost of launching kernels.
_CHUNK, _CHUNK_GPU = 1 << 16, 1 << 22


@lru_cache(256)
def count_for(sigma: float, dtype: torch.dtype, reach: float = REACH) -> int:
    """The number of polynomials for the kernel exp(-d^2 / (2 sigma^2)) of values of a type on [-reach, reach]."""
    narrow = sigma / reach
    # The series of the kernel at the centre, where it is narrowest for the polynomials; the odd terms are 0.
    points = 1 << math.ceil(math.log2(32 / narrow + 64))
    nodes = torch.cos(2 * math.pi / points * torch.arange(points, dtype=torch.float64))
    series = torch.fft.rfft(torch.exp(-(nodes**2) / (2 * narrow**2))).real.abs() * (2 / points)
    left_out = series.flip(0).cumsum(0).flip(0)
    return int((left_out > _TAIL[dtype]).sum()) + 1


def nodes_of(count: int) -> Tensor:
    """The Chebyshev nodes (K,) in (-1, 1), float64: series of K polynomials are determined by values at them."""
    return torch.cos(math.pi / count * (torch.arange(count, dtype=torch.float64) + 0.5))


@lru_cache(16)
def to_nodes(count: int) -> Tensor:
    """(K nodes, K polynomials), float64: maps sums of polynomials to weights of the nodes, so that

    sum_x f(x) = sum_j weight_j f(node_j). Its transpose maps values at the nodes to the coefficients of a series.
    """
    k = torch.arange(count, dtype=torch.float64)
    matrix = 2 / count * torch.cos(math.pi / count * (k + 0.5)[:, None] * k)
    matrix[:, 0] /= 2
    return matrix


def polynomials(x: Tensor, count: int) -> Tensor:
    """T_0 ... T_(K-1) of x (N,) within [-1, 1]: (N, K)."""
    return torch.cos(torch.acos(x.clamp(-1, 1))[:, None] * torch.arange(count, dtype=x.dtype, device=x.device))


@lru_cache(16)
def _derivative(count: int, device: torch.device) -> Tensor:
    """(K, K): coefficients of a series -> those of its derivative. Kept on the device, so that no step copies it."""
    k = torch.arange(count)
    of = (k > k[:, None]) & ((k - k[:, None]) % 2 == 1)
    matrix = torch.where(of, 2.0 * k.double(), 0.0)
    matrix[0] /= 2
    return matrix.to(device)


def polynomial_sums(values: Tensor, count: int, sigma: float) -> Tensor:
    """The sums of T_k(x / REACH), k < count, over values x of any shape: (count,) in float64.

    They are good for functions that are smooth on the scale of `sigma`, if `count` is at least that of `count_for`: on
    a CPU fewer polynomials are computed if the values are close together. Memory use does not grow with `count`. There
    is no second derivative.
    """
    return _Sums.apply(values, count, sigma)  # type: ignore[no-any-return]


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, count: int, sigma: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.sigma = sigma
        values = values.detach().reshape(-1)
        if kernels := kernels_for(values):
            return kernels.sums(values, 1 / REACH, count)
        low, high, own = _range(values, count, sigma)
        total = torch.zeros(own, dtype=torch.float64, device=values.device)
        space = _space(values)
        for chunk in values.split(space.shape[1]):
            total += _chunk_sums(chunk, low, high, own, space)
        if own == count:
            return total
        places = (low + high) / 2 + (high - low) / 2 * nodes_of(own)
        return polynomials(places / REACH, count).T @ (to_nodes(own) @ total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (values,) = ctx.saved_tensors
        count = len(gradients[0])
        slope = _derivative(count, values.device) @ gradients[0] / REACH
        flat = values.reshape(-1)
        if kernels := kernels_for(flat):
            return kernels.series(flat, 1 / REACH, slope).reshape(values.shape), None, None
        low, high, own = _range(flat, count, ctx.sigma)
        if own < count:
            places = (low + high) / 2 + (high - low) / 2 * nodes_of(own)
            slope = to_nodes(own).T @ (polynomials(places / REACH, count) @ slope)
        result, space = torch.empty_like(flat), _space(flat)
        for chunk, out in zip(flat.split(space.shape[1]), result.split(space.shape[1]), strict=True):
            _chunk_series(chunk, low, high, slope, out, space)
        return result.reshape(values.shape), None, None


def _range(values: Tensor, count: int, sigma: float) -> tuple[float, float, int]:
    """An interval with all values, and the number of polynomials on it that are enough, at most `count`."""
    if values.device.type == "cpu":  # elsewhere it would wait for the device
        low, high = (float(end) for end in values.detach().aminmax())
        middle, half = (low + high) / 2, max((high - low) / 2, 1e-3 * sigma)
        if math.isfinite(half) and (own := count_for(sigma / half, values.dtype, 1.0)) < count:
            return middle - half, middle + half, own
    return -REACH, REACH, count


def _space(values: Tensor) -> Tensor:
    """Memory for a chunk's recurrence (3, chunk); memory that is new for each chunk would take longer to get."""
    chunk = _CHUNK * torch.get_num_threads() if values.device.type == "cpu" else _CHUNK_GPU
    return values.new_empty(3, min(chunk, len(values)))


def _on_interval(chunk: Tensor, low: float, high: float, out: Tensor) -> Tensor:
    return torch.mul(chunk, 2 / (high - low), out=out).sub_((high + low) / (high - low))


def _chunk_sums(chunk: Tensor, low: float, high: float, count: int, space: Tensor) -> Tensor:
    twice, before, last = space[:, : len(chunk)]
    _on_interval(chunk, low, high, last)
    torch.mul(last, 2, out=twice)
    before.fill_(1)
    sums, signs = [before.sum(), last.sum()], [1, 1]
    for _ in range(2, count):
        # In place, so it leaves -T_k where T_k is meant, or T_k where the sign is already reversed.
        before.addcmul_(twice, last, value=-signs[-2] * signs[-1])
        signs.append(-signs[-2])
        before, last = last, before
        sums.append(last.sum())
    return torch.stack([one if sign > 0 else -one for one, sign in zip(sums[:count], signs, strict=False)]).double()


def _chunk_series(chunk: Tensor, low: float, high: float, coefficients: Tensor, out: Tensor, space: Tensor) -> None:
    """Evaluates a series by Clenshaw's recurrence b_k = c_k + 2 x b_(k+1) - b_(k+2); the value is b_0 - x b_1."""
    twice, later, last = space[:, : len(chunk)]
    _on_interval(chunk, low, high, twice).mul_(2)
    later.zero_()
    last.zero_()
    sign_later, sign_last = 1, 1
    # A GPU's coefficients stay there.
    scalars: Any = coefficients.tolist() if chunk.device.type == "cpu" else coefficients.to(chunk.dtype)
    for k in reversed(range(1, len(coefficients))):
        # In place, with a reversed sign: see `_chunk_sums`.
        sign_later = -sign_later
        later.addcmul_(twice, last, value=sign_later * sign_last).add_(scalars[k] * sign_later)
        later, last, sign_later, sign_last = last, later, sign_last, sign_later
    torch.mul(twice, last, out=out).mul_(sign_last / 2).sub_(later, alpha=sign_later).add_(scalars[0])
