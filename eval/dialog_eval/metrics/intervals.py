"""Bootstrap confidence intervals (Efron, 1979): how far a mean would move on another sample of the same kind.

The percentile interval: samples of the same size are drawn with replacement from the values, and the interval holds
the middle `confidence` of their means. Values of one image (its questions, its captions) are not independent; given
`groups`, whole images are drawn, and the interval is as wide as it should be.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Draws held at a time: 8 MB an array.
_MOST_DRAWS = 1 << 20


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    groups: npt.ArrayLike | None = None,
) -> tuple[float, float, float]:
    """(mean, low, high) of values (n,), such as each query's hit or each question's accuracy; in the values' unit.

    `groups`: (n,) whose values belong together, such as image ids; None where each stands for itself. Same input and
    seed, same interval. Memory is bounded: it does not grow with n * resamples.

    Raises ValueError for values that are none, not finite or not (n,), for groups of another length, a confidence
    outside (0, 1), and resamples below 1.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"expected finite values (n,) with n >= 1, got an array of shape {array.shape}: {array}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    means = _resampled_means(_sums_and_sizes(array, groups), resamples, np.random.default_rng(seed))
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
    """(difference, low, high) of mean(a) - mean(b), where a[i] and b[i] (n,) are two models' values on the same item.

    An interval without 0 is a difference that the items drawn do not explain. Parameters and errors are those of
    `bootstrap_interval`; raises ValueError too where the shapes differ.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a and b must be of the same items, got shapes {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, confidence=confidence, resamples=resamples, seed=seed, groups=groups)


def _sums_and_sizes(values: Floats, groups: npt.ArrayLike | None) -> Floats:
    """(units, 2): what is drawn, as the sum and the number of its values."""
    if groups is None:
        return np.stack([values, np.ones_like(values)], axis=1)
    names = np.asarray(groups)
    if names.shape != values.shape:
        raise ValueError(f"groups must be of shape {values.shape} like the values, got {names.shape}")
    _, group_of = np.unique(names, return_inverse=True)
    return np.stack([np.bincount(group_of, weights=values), np.bincount(group_of)], axis=1).astype(np.float64)


def _resampled_means(units: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples,): the mean of the values of as many units, drawn with replacement, again and again."""
    kinds, counts = np.unique(units, axis=0, return_counts=True)
    # Hits and accuracies take few values: drawing how often each occurs is the same, and far cheaper.
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
