"""How many requests a server gets at a time: additive increase, multiplicative decrease, as in TCP (RFC 5681)."""

import math

_START = 8
_LESS = 0.5
_SLIGHTLY_LESS = 0.75
# A window of answers with this many times the latency that the server once had means that it is overloaded.
_SLOWER = 2.0
# Old measurements count less and less: a server may have become slower for good.
_FORGET = 1.02


class Concurrency:
    """The limit of one server, in [1, most].

    The limit doubles with each round of answers until the server is overloaded for the first time, and grows by one per
    round after that. It is halved when the server says that it is overloaded, or does not answer in time. It becomes a
    quarter smaller when answers take twice as long as they did at as many requests; a latency that grows in proportion
    to the requests is no overload, since servers answer requests in batches.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(min(_START, most))
        self._doubling = True
        self._cut_at = -math.inf
        self._seconds, self._answers = 0.0, 0
        self._latency = dict[int, tuple[float, float]]()
        """log2 of a limit -> (limit, the least mean latency there)."""

    @property
    def limit(self) -> int:
        """The number of requests."""
        return max(1, int(self._limit))

    def answered(self, *, began: float, now: float, in_flight: int) -> None:
        """Counts an answer to a request of time `began`; `in_flight` includes the request."""
        if in_flight < self.limit // 2:
            return  # the limit did not matter
        self._limit = min(self._most, self._limit + (1 if self._doubling else 1 / self._limit))
        if began < self._cut_at:
            return
        self._seconds, self._answers = self._seconds + now - began, self._answers + 1
        if self._answers >= max(_START, self.limit):
            self._measure(self._seconds / self._answers, now)
            self._seconds, self._answers = 0.0, 0

    def overloaded(self, *, began: float, now: float) -> None:
        """Counts a request that the server was too busy for. Requests sent before the last decrease do not count."""
        if began >= self._cut_at:
            self._cut(_LESS, now)

    def _measure(self, latency: float, now: float) -> None:
        usual = min((best * max(1.0, self._limit / limit) for limit, best in self._latency.values()), default=latency)
        self._latency = {key: (limit, best * _FORGET) for key, (limit, best) in self._latency.items()}
        key = round(math.log2(self._limit))
        if key not in self._latency or latency < self._latency[key][1]:
            self._latency[key] = self._limit, latency
        if latency > _SLOWER * usual:
            self._cut(_SLIGHTLY_LESS, now)

    def _cut(self, factor: float, now: float) -> None:
        self._limit = max(1.0, self._limit * factor)
        self._doubling = False
        self._cut_at = now
        self._seconds, self._answers = 0.0, 0
