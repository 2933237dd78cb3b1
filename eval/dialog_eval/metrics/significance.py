"""Whether a difference of two models holds: over images and seeds, and among all differences that are looked at.

A figure of a training varies with the images that it is measured on, and with the seed of the training. The variance of
the mean over seeds is the sum of both: that of the mean over images, whose items are clustered by image, and that of
the seeds' means divided by their number. Each part is known from its own number of images or seeds, so the half width
of the interval is sqrt(sum of (Student's quantile * standard error of the part)^2), which covers at least 95 %
(Banerjee, 1960, Sankhya 22: 359). One number of degrees of freedom for the sum, as Welch and Satterthwaite have it,
trusts two or three seeds that happen to lie close together: of 20 comparisons of equal models, one was called a
difference in a quarter of all families.

Where one side has one seed, it is taken to vary as the other side does. Where no side has more, the interval is over
images only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dialog_eval.metrics.intervals import sums_and_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A difference of two means, or one mean."""

    mean: float
    low: float
    high: float
    """End of the 95 % interval that begins at `low`."""
    p: float
    """Two-sided p-value of the difference being `above`."""
    seeds: int
    """The smaller number of seeds of what was trained; 0 means that nothing was."""


def difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike | None,
    groups: npt.ArrayLike | None = None,
    *,
    factor: float = 1.0,
    above: float = 0.0,
    a_is_trained: bool = True,
    b_is_trained: bool = True,
    paired: bool = False,
) -> Difference:
    """mean(a) - factor * mean(b) and how likely it is `above`; `a` and `b` are (seeds, items), on the same items.

    `groups`: (items,), equal for items of one image. `b`: None for the mean of a alone. `a_is_trained`, `b_is_trained`:
    whether another seed would give other values; a model that is not trained has no seeds. `paired`: whether row s of
    `a` and row s of `b` have something in common that other rows have not, such as what both trainings started from.
    p is 1 if there are no two groups; if no value varies, it is that of all signs being equal, 2^(1 - images).
    Raises ValueError for items of other numbers, and for pairs without a partner.
    """
    first = np.asarray(a, np.float64)
    second = np.zeros((1, first.shape[1])) if b is None else np.asarray(b, np.float64)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a and b must be of the same items, got shapes {first.shape} and {second.shape}")
    values = first.mean(axis=0) - factor * second.mean(axis=0)
    units = sums_and_sizes(values, groups)  # (images, 2)
    mean = float(values.mean())
    residuals = units[:, 0] - mean * units[:, 1]
    images = len(units)
    parts = [(images / max(1, images - 1) * float(residuals @ residuals) / len(values) ** 2, images - 1)]
    if paired and b is not None:
        if len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} seeds are no pairs")
        trained = [(first - factor * second, 1.0)] if a_is_trained or b_is_trained else []
    else:
        trained = [(first, 1.0)] if a_is_trained else []
        trained += [(second, factor)] if b is not None and b_is_trained else []
    parts += _of_seeds([(repeated.mean(axis=1), weight) for repeated, weight in trained])
    total = sum(part for part, _ in parts)
    seeds = min((len(repeated) for repeated, _ in trained), default=0)
    # Sums of equal floats differ in their last digits: that is no variance.
    digits = 1e-12 * max(1.0, abs(mean))
    if images < 2 or total <= digits**2:
        unknown = images < 2 or abs(mean - above) <= digits
        return Difference(mean=mean, low=mean, high=mean, p=1.0 if unknown else 0.5 ** (images - 1), seeds=seeds)
    width, p = _half_width(parts, 0.05), _p_value(parts, abs(mean - above))
    low, high = mean - width, mean + width
    if b is None and first.min() >= 0 and first.max() <= 1:
        # The mean of shares is one, however few seeds there are.
        low, high = max(low, 0.0), min(high, 1.0)
    return Difference(mean=mean, low=low, high=high, p=p, seeds=seeds)


_Part = tuple[float, int]
"""A variance of the mean, and its degrees of freedom"""
_LEAST_LOG_P = -460.0


def _of_seeds(trained: Sequence[tuple[npt.NDArray[np.float64], float]]) -> list[_Part]:
    """The parts that come from the seeds; `trained` has the seeds' means (seeds,) and the factor of each side."""
    known = [(means, factor) for means, factor in trained if len(means) > 1]
    parts = [(factor**2 * float(means.var(ddof=1)) / len(means), len(means) - 1) for means, factor in known]
    if len(known) == 1 and len(trained) == 2:
        (means, factor), own = known[0], next(factor for means, factor in trained if len(means) == 1)
        return [(float(means.var(ddof=1)) * (factor**2 / len(means) + own**2), len(means) - 1)]
    return parts


def _half_width(parts: Sequence[_Part], p: float) -> float:
    """Half of the interval that leaves out `p`."""
    from scipy.special import stdtrit

    quantiles = [(part, -float(stdtrit(max(1, freedom), p / 2))) for part, freedom in parts]
    return math.hypot(*(math.sqrt(part) * quantile for part, quantile in quantiles))


def _p_value(parts: Sequence[_Part], distance: float) -> float:
    """The `p` whose interval just reaches as far as `distance`."""
    from scipy.optimize import brentq

    if distance == 0:
        return 1.0
    if _half_width(parts, math.exp(_LEAST_LOG_P)) <= distance:
        return 0.0
    log_p: float = brentq(lambda log_p: _half_width(parts, math.exp(log_p)) - distance, _LEAST_LOG_P, 0.0, xtol=1e-12)  # type: ignore[assignment] - without full_output
    return math.exp(log_p)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being looked at together (Holm, 1979), in the order given.

    If those below 0.05 are called differences, the probability that any of them is none is at most 0.05.
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted
