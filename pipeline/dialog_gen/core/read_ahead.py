"""Reads things that are asked for one by one, most of the time in their order, before they are asked for."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

R = TypeVar("R")


class ReadAhead(Generic[R]):
    """Calls `read(name)`; while names are asked for in their order, it reads the next ones in threads.

    What was read is given out once: who asks again gets what is there by then. Not thread-safe. The threads end with
    the object.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], R], *, threads: int) -> None:
        """`names` is sorted and has no repeats."""
        self._names, self._read, self._threads = names, read, threads
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = dict[str, Future[R]]()
        self._next = self._window = 0

    def __contains__(self, name: str) -> bool:
        """Whether it is one of the names."""
        place = bisect_left(self._names, name)
        return place < len(self._names) and self._names[place] == name

    def get(self, name: str) -> R:
        """What `read` gives for one of the names. Raises what `read` raises."""
        place = bisect_left(self._names, name)
        if place == self._next:
            self._window = min(2 * self._window + 1, 4 * self._threads)
        else:
            self._window = 0
            self.forget()
        self._next = place + 1
        for following in self._names[self._next : self._next + self._window]:
            if following not in self._ahead:
                self._ahead[following] = self._pool.submit(self._read, following)
        future = self._ahead.pop(name, None)
        return self._read(name) if future is None else future.result()

    def forget(self) -> None:
        """Drops what was read ahead."""
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()
