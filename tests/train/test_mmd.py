import math

import pytest
import torch

from dialog_train.losses.mmd import median_sigma, median_sigma_rows, mmd2_rbf, mmd2_rbf_rows


def pairwise(x: torch.Tensor, y: torch.Tensor, sigma: float) -> torch.Tensor:
    """The definition, over all pairs, in float64."""

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-((a[:, None] - b[None]) ** 2) / (2 * sigma**2)).mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def samples(kind: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    draw = torch.rand(1, 700, dtype=torch.float64, generator=generator).squeeze() * 2 - 1
    other = torch.rand(1, 900, dtype=torch.float64, generator=generator).squeeze() ** 2 * 2 - 1
    made = {
        "spread": (draw, other),
        "narrow": (draw * 0.05 + 0.3, other * 0.05 + 0.32),
        "ends": (draw.sign(), -other.sign()),
        "one value each": (draw[:1], other[:1]),
    }[kind]
    return made[0].to(dtype), made[1].to(dtype)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["spread", "narrow", "ends", "one value each"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_pairwise_form(sigma: float, kind: str, dtype: torch.dtype) -> None:
    x, y = (sample.requires_grad_() for sample in samples(kind, dtype))
    exact_x, exact_y = (sample.detach().double().requires_grad_() for sample in (x, y))
    value, exact = mmd2_rbf(x, y, sigma), pairwise(exact_x, exact_y, sigma)
    assert value.dtype == dtype
    assert abs(value.item() - exact.item()) < 1e-6
    gradients = torch.autograd.grad(value, (x, y))
    expected = torch.autograd.grad(exact, (exact_x, exact_y))
    for gradient, wanted in zip(gradients, expected, strict=True):
        # Relative to what one value can pull at all.
        scale = 1 / sigma / math.sqrt(len(wanted))
        assert (gradient - wanted).norm().item() / scale < 1e-6


def test_matrices_are_samples_of_their_values() -> None:
    x, y = samples("spread", torch.float64)
    assert mmd2_rbf(x.reshape(70, 10), y.reshape(30, 30), 0.2) == mmd2_rbf(x, y, 0.2)


def test_of_a_sample_with_itself_is_zero() -> None:
    x, _ = samples("spread", torch.float32)
    assert mmd2_rbf(x, x.flip(0), 0.1).abs().item() < 1e-12


def test_takes_chunks_of_a_large_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples("spread", torch.float64)
    x.requires_grad_()
    whole = torch.autograd.grad(mmd2_rbf(x, y, 0.2), x)[0]
    monkeypatch.setattr("dialog_train.losses.chebyshev._CHUNK", 64)
    torch.testing.assert_close(torch.autograd.grad(mmd2_rbf(x, y, 0.2), x)[0], whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("x", "sigma", "said"), [([], 0.2, "at least one"), ([0.1], 0.0, "positive"), ([0.1], -1, "-1")]
)
def test_refuses(x: list[float], sigma: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mmd2_rbf(torch.tensor(x), torch.tensor([0.2]), sigma)


def test_rows_equal_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(n, 5, dtype=torch.float64, generator=generator) for n in (6, 9))

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        kernels = [math.exp(-sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / (2 * 0.3**2)) for u in a for v in b]
        return sum(kernels) / len(kernels)

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert mmd2_rbf_rows(x, y, 0.3).item() == pytest.approx(expected, abs=1e-12)


def test_median_sigma() -> None:
    x, y = samples("spread", torch.float64)
    pooled = torch.cat([x, y])
    distances = (pooled[:, None] - pooled[None]).abs()[torch.triu_indices(1600, 1600, 1).unbind()]
    assert median_sigma(x, y) == pytest.approx(distances.median().item(), abs=4e-5)
    assert median_sigma(x, y, values=400) == pytest.approx(distances.median().item(), rel=0.02)
    assert median_sigma(torch.zeros(5), torch.zeros(5)) == 1e-3


def test_median_sigma_of_more_values_than_float32_counts() -> None:
    """2 N^2 similarities of a batch of 2,900 and more."""
    x = torch.linspace(-1, 1, 1 << 24)
    assert median_sigma(x, x[: 1 << 12], values=64) == pytest.approx(2 * (1 - math.sqrt(0.5)), rel=0.05)


def test_median_sigma_of_rows() -> None:
    x, y = (sample[:600].reshape(60, 10) for sample in samples("spread", torch.float64))
    assert median_sigma_rows(x, y) == pytest.approx(torch.pdist(torch.cat([x, y])).median().item(), abs=1e-12)
    assert median_sigma_rows(x, y, values=60) == pytest.approx(median_sigma_rows(x, y), rel=0.1)
