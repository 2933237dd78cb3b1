"""Sums and series of Chebyshev polynomials, on every path that a device can take, against cos(k acos x) in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dialog_train.losses import chebyshev
from dialog_train.losses.chebyshev import REACH, count_for, polynomial_sums, polynomials

SIGMA = 0.2


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kernels: the interval does not depend on the values."""
    monkeypatch.setattr(chebyshev, "_range", lambda values, count, sigma: (-REACH, REACH, count))


def as_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is that of the values."""


PATHS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "gpu": as_on_a_gpu,
    "cpu": as_on_a_cpu,
}


def smooth(weights: Tensor, sums: Tensor) -> Tensor:
    """sum_x f(x), f a sum of Gaussians of width SIGMA, from the sums of polynomials."""
    nodes = REACH * chebyshev.nodes_of(len(sums))
    centres = torch.linspace(-1, 1, len(weights), dtype=torch.float64)
    at_nodes = torch.exp(-(nodes[:, None] - centres).square() / (2 * SIGMA**2)) @ weights
    return at_nodes @ (chebyshev.to_nodes(len(sums)) @ sums)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spread", [1.0, 0.1])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_sums_of_smooth_functions(
    monkeypatch: pytest.MonkeyPatch, path: str, spread: float, dtype: torch.dtype, error: float
) -> None:
    PATHS[path](monkeypatch)
    generator = torch.Generator().manual_seed(3)
    values = (torch.rand(101, 100, generator=generator, dtype=torch.float64) * 2 - 1).mul(spread).to(dtype)
    values = values.T.requires_grad_()  # not contiguous
    weights = torch.randn(5, generator=generator, dtype=torch.float64)
    found = smooth(weights, polynomial_sums(values, count_for(SIGMA, dtype), SIGMA)) / values.numel()
    exact = values.detach().double().requires_grad_()
    centres = torch.linspace(-1, 1, 5, dtype=torch.float64)
    expected = (torch.exp(-(exact[..., None] - centres).square() / (2 * SIGMA**2)) @ weights).mean()
    assert abs(found.item() - expected.item()) < error
    gradients = [torch.autograd.grad(of, x)[0] * values.numel() for of, x in ((found, values), (expected, exact))]
    assert (gradients[0] - gradients[1]).abs().max() < 1e2 * error


def test_the_polynomials() -> None:
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    expected = torch.stack([x**0, x, 2 * x**2 - 1, 4 * x**3 - 3 * x], 1)
    torch.testing.assert_close(polynomials(x, 4), expected)


def test_memory_does_not_grow_with_the_number_of_polynomials() -> None:
    values = torch.rand(1 << 16).requires_grad_()
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        polynomial_sums(values, 300, 0.02)
    assert sum(saved) == values.numel()
