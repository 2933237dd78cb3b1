"""Counts over streams of any length in bounded memory. Exact for few distinct items, else with a known error."""

import heapq
from collections import Counter

from dialog_gen.core.hashing import hash_64

_HASHES = 1 << 64


class FrequentItems:
    """The most frequent items: Misra-Gries counters, in the batch form of arXiv 1204.1078.

    Exact up to `capacity` distinct items. With more items, each count is too low by at most `undercount`, and every
    item that occurred more than `undercount` times is present.
    """

    def __init__(self, capacity: int = 1 << 14) -> None:
        self._capacity = capacity
        self._counts = Counter[str]()
        self.undercount = 0

    def add(self, item: str) -> None:
        """Counts an occurrence of an item."""
        self._counts[item] += 1
        if len(self._counts) > 2 * self._capacity:
            cut = heapq.nlargest(self._capacity + 1, self._counts.values())[-1]
            self.undercount += cut
            self._counts = Counter({known: count - cut for known, count in self._counts.items() if count > cut})

    def top(self, count: int) -> dict[str, int]:
        """The `count` most frequent items with their counts; ties are in alphabetical order."""
        return dict(heapq.nsmallest(count, self._counts.items(), key=lambda item: (-item[1], item[0])))


class DistinctItems:
    """The numbers of distinct items and of repetitions, from the k smallest hashes and their counts.

    Exact up to k distinct items (apart from hash collisions, of probability 2^-64 each). With more items, the number is
    an estimate with a standard error of 1 / sqrt(k - 2), 0.6 % for the default (Bar-Yossef et al. 2002): if x is the
    largest of the k smallest of n uniform hashes in [0, 1], then n is about (k - 1) / x.
    """

    def __init__(self, k: int = 1 << 15) -> None:
        self._k = k
        self._counts: dict[int, int] = {}
        self._limit = _HASHES
        self.seen = 0

    def add(self, item: str) -> None:
        """Counts an occurrence of an item."""
        self.seen += 1
        key = hash_64(item)
        if key < self._limit:
            # The limit only decreases, so a hash below it was never dropped, and its count is complete.
            self._counts[key] = self._counts.get(key, 0) + 1
            if len(self._counts) > 2 * self._k:
                self._keep_smallest()

    @property
    def exact(self) -> bool:
        """Whether the figures are counts rather than estimates."""
        return self._limit == _HASHES and len(self._counts) <= self._k

    @property
    def distinct(self) -> int:
        """The number of distinct items."""
        if self.exact:
            return len(self._counts)
        self._keep_smallest()
        return round((self._k - 1) * _HASHES / self._limit)

    @property
    def repeated(self) -> int:
        """The number of items that repeat an earlier item."""
        self._keep_smallest()
        return round(self.seen * (1 - len(self._counts) / self._counted)) if self.seen else 0

    @property
    def _counted(self) -> int:
        return sum(self._counts.values())

    def _keep_smallest(self) -> None:
        if len(self._counts) > self._k:
            self._counts = {key: self._counts[key] for key in heapq.nsmallest(self._k, self._counts)}
            self._limit = max(self._counts) + 1
