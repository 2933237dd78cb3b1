"""Whether a difference of two models holds: over images and seeds, and among all differences that are looked at.

A figure of a training varies with the images that it is measured on, and with the seed of the training. The variance of
the mean over seeds is the sum of both: that of the mean over images, whose items are clustered by image, and that of
the seeds' means divided by their number. The interval is Student's, with Welch and Satterthwaite's degrees of freedom.
With one seed the second part is unknown; the interval is then over images only.
"""

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
    """The smaller number of seeds; 1 means that the interval is over images only, 0 that nothing was trained."""


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
    p is 1 if there are no two groups. Raises ValueError for items of other numbers, and for pairs without a partner.
    """
    from scipy.stats import t

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
    for repeated, weight in trained:
        if len(repeated) > 1:
            parts.append((weight**2 * repeated.mean(axis=1).var(ddof=1) / len(repeated), len(repeated) - 1))
    total = sum(part for part, _ in parts)
    seeds = min((len(repeated) for repeated, _ in trained), default=0)
    # Sums of equal floats differ in their last digits: that is no variance.
    digits = 1e-12 * max(1.0, abs(mean))
    if images < 2 or total <= digits**2:
        unknown = images < 2 or abs(mean - above) <= digits
        return Difference(mean=mean, low=mean, high=mean, p=1.0 if unknown else 0.0, seeds=seeds)
    freedom = total**2 / sum(part**2 / max(1, own) for part, own in parts if part > 0)
    error = float(np.sqrt(total))
    width = float(t.ppf(0.975, freedom)) * error
    p = 2 * float(t.sf(abs(mean - above) / error, freedom))
    low, high = mean - width, mean + width
    if b is None and first.min() >= 0 and first.max() <= 1:
        # The mean of shares is one, however few seeds there are.
        low, high = max(low, 0.0), min(high, 1.0)
    return Difference(mean=mean, low=low, high=high, p=p, seeds=seeds)


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
