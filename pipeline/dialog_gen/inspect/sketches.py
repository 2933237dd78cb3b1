"""Counts over streams of any length in bounded memory: exact while few things differ, honest about the error after."""

import heapq
from collections import Counter

from dialog_gen.core.hashing import hash_64

_HASHES = 1 << 64


class FrequentItems:
    """The most frequent of many things: Misra-Gries counters, in the form of arXiv 1204.1078 that can take a batch.

    Exact up to `capacity` different things. After that each count is too low by `undercount` at most, and whatever was
    seen more often than that is there.
    """

    def __init__(self, capacity: int = 1 << 14) -> None:
        self._capacity = capacity
        self._counts = Counter[str]()
        self.undercount = 0

    def add(self, item: str) -> None:
        """Counts one more."""
        self._counts[item] += 1
        if len(self._counts) > 2 * self._capacity:
            cut = heapq.nlargest(self._capacity + 1, self._counts.values())[-1]
            self.undercount += cut
            self._counts = Counter({known: count - cut for known, count in self._counts.items() if count > cut})

    def top(self, count: int) -> dict[str, int]:
        """The most frequent and how often each was seen; those seen equally often in alphabetical order."""
        return dict(heapq.nsmallest(count, self._counts.items(), key=lambda item: (-item[1], item[0])))


class DistinctItems:
    """How many different things there are, and how many repeat an earlier one: the k smallest hashes, with counts.

    Exact up to k different things (two in 2^64 that share a hash aside). After that an estimate with a standard error
    of 1 / sqrt(k - 2), 0.6 % for the default (Bar-Yossef et al. 2002): k hashes that reach from 0 up to x among
    uniform ones say that there are (k - 1) / x in all.
    """

    def __init__(self, k: int = 1 << 15) -> None:
        self._k = k
        self._counts: dict[int, int] = {}
        self._limit = _HASHES
        self.seen = 0

    def add(self, item: str) -> None:
        """Counts one more."""
        self.seen += 1
        key = hash_64(item)
        if key < self._limit:
            # A hash below the limit was never dropped, as the limit only sinks: its count is complete.
            self._counts[key] = self._counts.get(key, 0) + 1
            if len(self._counts) > 2 * self._k:
                self._keep_smallest()

    @property
    def exact(self) -> bool:
        """Whether the figures are counts, not estimates."""
        return self._limit == _HASHES and len(self._counts) <= self._k

    @property
    def distinct(self) -> int:
        """How many different things were seen."""
        if self.exact:
            return len(self._counts)
        self._keep_smallest()
        return round((self._k - 1) * _HASHES / self._limit)

    @property
    def repeated(self) -> int:
        """How many of those seen had been seen before."""
        self._keep_smallest()
        return round(self.seen * (1 - len(self._counts) / self._counted)) if self.seen else 0

    @property
    def _counted(self) -> int:
        return sum(self._counts.values())

    def _keep_smallest(self) -> None:
        if len(self._counts) > self._k:
            self._counts = {key: self._counts[key] for key in heapq.nsmallest(self._k, self._counts)}
            self._limit = max(self._counts) + 1
