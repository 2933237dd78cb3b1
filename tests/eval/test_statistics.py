import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dialog_eval.metrics.intervals import bootstrap_interval, paired_bootstrap

# The normal distribution's 97.5 % and 95 % points.
Z_95, Z_90 = 1.959964, 1.644854


def draw(kind: str, size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Values of mean 0.3: hits (few values, drawn by how often each occurs) or a measurement (all differ)."""
    return (rng.random(size) < 0.3).astype(float) if kind == "hits" else rng.normal(0.3, 2, size)


@pytest.mark.parametrize("kind", ["hits", "measurements"])
@pytest.mark.parametrize(("confidence", "z"), [(0.95, Z_95), (0.9, Z_90)])
def test_interval_is_the_normal_one_for_many_values(kind: str, confidence: float, z: float) -> None:
    values = draw(kind, 1000, np.random.default_rng(1))
    error = values.std() / np.sqrt(1000)
    mean, low, high = bootstrap_interval(values, confidence=confidence, resamples=20_000)
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert [(low - mean) / error, (high - mean) / error] == pytest.approx([-z, z], abs=0.06)


@pytest.mark.parametrize("kind", ["hits", "measurements"])
def test_coverage(kind: str) -> None:
    rng = np.random.default_rng(2)
    intervals = [bootstrap_interval(draw(kind, 200, rng), resamples=500, seed=seed) for seed in range(600)]
    share = np.mean([low <= 0.3 <= high for _, low, high in intervals])
    # Within 3 standard errors of 95 %, and what a bootstrap of 200 values falls short.
    assert 0.915 < share < 0.98


def test_coverage_where_an_images_questions_go_together() -> None:
    """Five questions an image that are alike: whole images must be drawn."""
    rng = np.random.default_rng(3)
    images = np.repeat(np.arange(120), 5)
    found: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(300):
        values = np.repeat(rng.normal(0, 1, 120), 5) + rng.normal(0, 0.3, 600)
        for grouped, covered in found.items():
            groups = images if grouped else None
            _, low, high = bootstrap_interval(values, resamples=300, seed=seed, groups=groups)
            covered.append(low <= 0 <= high)
    assert 0.91 < np.mean(found[True]) < 0.98
    assert np.mean(found[False]) < 0.75


def test_groups_of_unequal_size() -> None:
    """Means of the values, not of the groups; the names' kind and order do not matter."""
    values = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    interval = bootstrap_interval(values, groups=["b", "a", "a", "a", "c", "c"])
    assert interval[0] == pytest.approx(0.5)
    # Draws of all a, and of none; three groups are drawn 27 ways, each of these more often than 1 in 40.
    assert interval[1:] == (0, 1)
    assert interval == bootstrap_interval(values, groups=[7, 3, 3, 3, 8, 8])
    single = bootstrap_interval(values, groups=range(6))
    assert single == bootstrap_interval(values)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(4)
    difficulty = rng.normal(0, 1, 3000)
    a, b = difficulty + 0.05 + rng.normal(0, 0.2, 3000), difficulty + rng.normal(0, 0.2, 3000)
    difference, low, high = paired_bootstrap(a, b, resamples=20_000)
    error = (a - b).std() / np.sqrt(3000)
    assert difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert [(low - difference) / error, (high - difference) / error] == pytest.approx([-Z_95, Z_95], abs=0.06)
    assert 0 < low < 0.05 < high
    _, low_a, high_a = bootstrap_interval(a)
    assert high_a - low_a > 3 * (high - low)


def test_paired_signs_and_options() -> None:
    a, b = [1, 1, 0, 1, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0, 1, 1]
    options: dict[str, Any] = {"confidence": 0.8, "resamples": 500, "seed": 3, "groups": [0, 0, 1, 1, 2, 2, 3, 3]}
    difference, low, high = paired_bootstrap(a, b, **options)
    assert difference == 0.125
    assert (difference, low, high) == bootstrap_interval(np.subtract(a, b), **options)
    assert paired_bootstrap(a, a) == (0, 0, 0)
    mirrored = paired_bootstrap(b, a, confidence=0.8, resamples=20_000)
    assert mirrored == pytest.approx([-x for x in np.take(paired_bootstrap(a, b, confidence=0.8), [0, 2, 1])], abs=0.13)


@pytest.mark.parametrize("kind", ["hits", "measurements"])
def test_seeded(kind: str) -> None:
    values = draw(kind, 300, np.random.default_rng(5))
    assert bootstrap_interval(values) == bootstrap_interval(values.tolist(), seed=0)
    assert bootstrap_interval(values, resamples=50) != bootstrap_interval(values, resamples=50, seed=1)


def test_no_spread() -> None:
    assert bootstrap_interval([0.6]) == (0.6, 0.6, 0.6)
    assert bootstrap_interval([True] * 100) == (1, 1, 1)


@pytest.mark.parametrize("kind", ["hits", "measurements"])
def test_memory_stays_bounded(kind: str) -> None:
    """All draws of 30,000 values 500 times would take 120 MB."""
    values = draw(kind, 30_000, np.random.default_rng(6))
    tracemalloc.start()
    try:
        bootstrap_interval(values, resamples=500)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"shape \(0,\)"),
        ([[1, 0]], {}, r"shape \(1, 2\)"),
        ([1, float("nan")], {}, "finite"),
        ([1, float("inf")], {}, "finite"),
        ([1, 0], {"confidence": 1}, "confidence .* got 1"),
        ([1, 0], {"confidence": 0}, "confidence .* got 0"),
        ([1, 0], {"confidence": 95}, "confidence .* got 95"),
        ([1, 0], {"resamples": 0}, "resamples .* got 0"),
        ([1, 0], {"groups": [1]}, r"groups .* \(2,\) .* \(1,\)"),
    ],
)
def test_wrong_values(values: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


def test_pairs_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\)"):
        paired_bootstrap([1, 0, 1], [1])
