"""Distributions of the numbers in a stream: mean, quantiles and a histogram."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_BINS = 24
_TINY = 1e-6


class Distribution:
    """Counts of numbers by value, rounded to two decimals and three significant digits."""

    def __init__(self) -> None:
        self._counts = Counter[float]()

    def add(self, value: float) -> None:
        """Counts a number. Because of rounding, there are at most a few thousand distinct values in memory."""
        self._counts[float(f"{round(value, 2):.3g}")] += 1

    def __len__(self) -> int:
        return self._counts.total()

    @property
    def mean(self) -> float:
        """Mean of the rounded values; 0 if there are none."""
        return sum(value * count for value, count in self._counts.items()) / (len(self) or 1)

    def quantile(self, fraction: float) -> float:
        """The smallest value v such that at least this fraction of the values is <= v; 0 if there are none."""
        reached = 0
        for value, count in sorted(self._counts.items()):
            reached += count
            if reached >= fraction * len(self):
                return value
        return 0.0

    def items(self) -> Iterator[tuple[float, int]]:
        """Each value with its count, in ascending order."""
        yield from sorted(self._counts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """A bar of a histogram: values from `low` to `high`, or all above `low` where `high` is None.

    A value on the boundary of two bars is in the upper one if all values are whole numbers, else in the lower one.
    """

    low: float
    high: float | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Summary of a distribution. Without values, all numbers are 0 and there are no bins."""

    count: int
    mean: float
    lowest: float
    median: float
    p95: float
    highest: float
    whole: bool
    """Whether all values are whole numbers."""
    bins: list[Bin]

    @classmethod
    def of(cls, values: Distribution) -> "Spread":
        """The summary of the values that were counted."""
        return cls(
            count=len(values),
            mean=round(values.mean, 4),
            lowest=values.quantile(0),
            median=values.quantile(0.5),
            p95=values.quantile(0.95),
            highest=values.quantile(1),
            whole=all(value.is_integer() for value, _ in values.items()),
            bins=_bins(values),
        )


def _bins(values: Distribution) -> list[Bin]:
    """At most `_BINS` bars, whose width is 1, 2 or 5 times a power of ten. The last bar includes the highest 1 %."""
    counts = list(values.items())
    if not counts:
        return []
    low, high, highest = counts[0][0], values.quantile(0.99), counts[-1][0]
    whole = all(value.is_integer() for value, _ in counts)
    widths = ((1 if whole else 0.01) * step * 10**power for power in itertools.count() for step in (1, 2, 5))
    width = next(width for width in widths if (high - low) / width < _BINS - 1)
    first = math.floor(low / width + _TINY)

    def bar_of(value: float) -> int:
        # A boundary belongs to the lower bar, because otherwise a score of 1 would need a bar of its own.
        return math.floor(value / width) if whole else max(first, math.ceil(value / width - _TINY) - 1)

    last = bar_of(high)
    bars = Counter[int]()
    for value, count in counts:
        bars[min(last, bar_of(value))] += count
    ends: list[float | None] = [round((bar + 1) * width, 6) for bar in range(first, last)]
    ends.append(None if bar_of(highest) > last else round((last + 1) * width, 6))
    return [Bin(low=round(bar * width, 6), high=end, count=bars[bar]) for bar, end in enumerate(ends, first)]
