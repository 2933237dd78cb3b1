"""Bootstrap confidence intervals (Efron, 1979): how much a mean would vary with another sample.

This is the percentile interval: samples of the same size are drawn with replacement from the values, and the interval
covers the middle `confidence` of their means. Values of one image (its questions, its captions) are not independent.
With `groups`, whole images are drawn, which gives intervals of the correct width.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Number of draws in memory at a time: 8 MB per array.
_MOST_DRAWS = 1 << 20


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> tuple[float, float, float]:
    """The (mean, low, high) of values (n,), such as the hit of each query or the accuracy of each question.

    `groups`: (n,), equal for values that belong together, such as image ids; None if all values are independent. The
    same input and seed give the same interval. Memory use does not grow with n * resamples.

    Raises ValueError for no values, values that are not finite or not (n,), groups of another length, a confidence
    outside (0, 1), and resamples below 1.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"expected finite values (n,) with n >= 1, got an array of shape {array.shape}: {array}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    means = _resampled_means(sums_and_sizes(array, groups), resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(array.mean()), float(low), float(high)


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> tuple[float, float, float]:
    """The (difference, low, high) of mean(a) - mean(b); a[i] and b[i] (n,) are two models' values on the same item.

    If the interval does not contain 0, the difference is unlikely to be due to the choice of items. Parameters and
    errors are those of `bootstrap_interval`; also raises ValueError if the shapes differ.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a and b must be of the same items, got shapes {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, confidence=confidence, resamples=resamples, seed=seed, groups=groups)


def values_of_mean_over_parts(values: npt.ArrayLike, parts: npt.ArrayLike) -> Floats:
    """Values (n,) whose mean is the mean over parts of the mean of `values` (n,) in each part; `parts`: (n,).

    Each is that mean plus the item's own influence on it (the infinitesimal jackknife; Jaeckel, 1972). So the bootstrap
    interval of these values is that of the mean over parts, for other items of the same parts. Raises ValueError for no
    values.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("a mean over parts needs a value")
    _, part_of, sizes = np.unique(np.asarray(parts), return_inverse=True, return_counts=True)
    means = np.bincount(part_of, weights=array) / sizes
    return means.mean() + (array - means[part_of]) * len(array) / (len(sizes) * sizes[part_of])


def sums_and_sizes(values: Floats, groups: npt.ArrayLike | None) -> Floats:
    """The units to draw, (units, 2): the sum and the number of the values of each."""
    if groups is None:
        return np.stack([values, np.ones_like(values)], axis=1)
    names = np.asarray(groups)
    if names.shape != values.shape:
        raise ValueError(f"groups must be of shape {values.shape} like the values, got {names.shape}")
    _, group_of = np.unique(names, return_inverse=True)
    return np.stack([np.bincount(group_of, weights=values), np.bincount(group_of)], axis=1).astype(np.float64)


def _resampled_means(units: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """The means (resamples,) of resampled values; each resample draws as many units as there are, with replacement."""
    kinds, counts = np.unique(units, axis=0, return_counts=True)
    # Hits and accuracies have few distinct values: drawing their counts is equivalent and much faster.
    few = len(kinds) * 8 <= len(units)
    step = max(1, _MOST_DRAWS // (len(kinds) if few else len(units)))
    columns = np.ascontiguousarray(units.T)
    means = np.empty(resamples)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if few:
            totals = rng.multinomial(len(units), counts / len(units), size=size) @ kinds
        else:
            draws = rng.integers(len(units), size=(size, len(units)))
            totals = np.stack([column[draws].sum(axis=1) for column in columns], axis=1)
        means[start : start + size] = totals[:, 0] / totals[:, 1]
    return means
