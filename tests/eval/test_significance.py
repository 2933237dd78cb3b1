"""Holm's correction by hand, and p-values against formulas for cases that have one."""

import math
from pathlib import Path

import numpy as np
import pytest
from helpers.results import entry, only, save
from scipy import stats

from dialog_eval.metrics.significance import difference, holm
from dialog_eval.tables.pooling import pool


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, and never less than the one before."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_seed_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 30))
    assert difference(a, b).p == pytest.approx(stats.ttest_rel(a[0], b[0]).pvalue)


def test_items_of_one_image_count_once() -> None:
    """Two equal items of each image say no more than one."""
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 1, 20))
    twice = difference(np.repeat(a, 2, axis=1), np.repeat(b, 2, axis=1), np.repeat(np.arange(20), 2)).p
    assert twice == pytest.approx(difference(a, b).p)


def test_seeds_that_disagree_are_no_difference() -> None:
    """The same on all images, +0.3 and -0.1 by seed: only the seeds vary, t = 0.1 / (0.2828 / sqrt 2), 1 degree."""
    a, b = np.array([[0.8] * 50, [0.4] * 50]), np.full((1, 50), 0.5)
    t = 0.1 / (np.std([0.3, -0.1], ddof=1) / math.sqrt(2))
    assert difference(a, b, b_is_trained=False).p == pytest.approx(2 * stats.t.sf(t, 1))


def test_one_seed_varies_as_those_that_it_is_compared_with() -> None:
    """A new training beside four: Student's t with their variance, times 1/4 + 1, and 3 degrees of freedom."""
    means = np.array([0.5, 0.52, 0.58, 0.44])
    four, one = np.repeat(means[:, None], 50, axis=1), np.full((1, 50), 0.7)
    t = (0.7 - means.mean()) / (means.std(ddof=1) * math.sqrt(1 / 4 + 1))
    assert difference(one, four).p == difference(four, one).p == pytest.approx(2 * stats.t.sf(t, 3))
    twice = difference(one, four, factor=2.0)
    t = abs(0.7 - 2 * means.mean()) / (means.std(ddof=1) * math.sqrt(4 / 4 + 1))
    assert twice.p == pytest.approx(2 * stats.t.sf(t, 3))


def test_the_parts_have_their_own_degrees_of_freedom() -> None:
    """The half width is the root of the summed squares of both parts' own half widths (Banerjee, 1960)."""
    rng = np.random.default_rng(5)
    images, seeds = 200, 3
    a = rng.normal(0.2, 1, images) + rng.normal(0, 0.3, (seeds, 1))
    found = difference(a, None, b_is_trained=False)
    of_images, of_seeds = a.mean(axis=0).std(ddof=1) / images**0.5, a.mean(axis=1).std(ddof=1) / seeds**0.5

    def half_width(p: float) -> float:
        return math.hypot(of_images * stats.t.isf(p / 2, images - 1), of_seeds * stats.t.isf(p / 2, seeds - 1))

    assert (found.high - found.low) / 2 == pytest.approx(half_width(0.05))
    assert half_width(found.p) == pytest.approx(abs(found.mean))


@pytest.mark.parametrize("ratio", [0.5, 3.0])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_that_lie_close_together_are_no_certainty(seeds: int, ratio: float) -> None:
    """In families of twenty comparisons of equal models, at most one in twenty has a difference that holds.

    `ratio`: of the standard deviation over seeds to the standard error over images.
    """
    rng = np.random.default_rng(6)
    images, families, false = 30, 100, 0
    for _ in range(families):
        noise = rng.normal(0, 1, (20, 1, images)) + rng.normal(0, ratio / images**0.5, (20, seeds, 1))
        false += min(holm([difference(one, None).p for one in noise])) < 0.05
    assert false <= 10  # the 99.9th percentile if one in twenty is false


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [([0.7] * 4, [0.5] * 4, 0.125), ([1.0, 1.0], [0.0, 0.0], 0.5), ([0.5] * 4, [0.5] * 4, 1.0), ([1.0], [0.0], 1.0)],
)
def test_no_variance(a: list[float], b: list[float], p: float) -> None:
    assert difference(np.array([a]), np.array([b])).p == p


def test_a_page_is_one_family(tmp_path: Path) -> None:
    """One of 20 models differs by luck: its own p is below 0.05, and among 20 it does not hold."""
    rng = np.random.default_rng(3)
    base = rng.integers(0, 2, 200).astype(float)
    lucky, others = base.copy(), [base.copy() for _ in range(19)]
    lucky[np.flatnonzero(base == 0)[:6]] = 1
    for number, other in enumerate(others):
        other[number], other[number + 50] = 1 - base[number], 1 - base[number + 50]
    some = [entry("base", base.tolist()), entry("lucky", lucky.tolist())]
    alone = only(pool(save(tmp_path, some))).rows[1].cells["accuracy"]
    assert alone.p_value == pytest.approx(stats.ttest_rel(lucky, base).pvalue)
    assert alone.holds
    some += [entry(f"other {number}", other.tolist()) for number, other in enumerate(others)]
    (_, among, *rest) = only(pool(save(tmp_path, some))).rows
    assert among.cells["accuracy"].p_value == pytest.approx(20 * stats.ttest_rel(lucky, base).pvalue)
    assert not among.cells["accuracy"].holds
    assert among.cells["accuracy"].counts == (6, 0)
    assert [row.cells["accuracy"].holds for row in rest] == [False] * 19


def test_an_untuned_baseline_does_not_vary(tmp_path: Path) -> None:
    """One row of a baseline is no training of one seed: only the tuned model's seeds vary."""
    rng = np.random.default_rng(8)
    base = rng.random(60)
    seeds = [base + rng.normal(0.05, 0.02, 60) + shift for shift in (0.0, 0.02, 0.05)]
    tuned = [[entry("tuned", values.tolist(), str(number))] for number, values in enumerate(seeds)]
    cell = only(pool(save(tmp_path, [entry("base", base.tolist())], *tuned))).rows[1].cells["accuracy"]
    expected = difference(np.array(seeds), base[None], b_is_trained=False).p
    assert cell.p_value == pytest.approx(expected)
    assert expected < difference(np.array(seeds), base[None]).p
