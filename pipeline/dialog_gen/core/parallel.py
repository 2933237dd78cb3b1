"""Calls that wait for something else, such as requests to an object store: several at a time, results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4


def in_order(function: Callable[[T], R], items: Iterable[T], *, threads: int) -> Iterator[R]:
    """Yields `function(item)` for each item, in order, while up to `threads` calls are made at a time.

    At most four times `threads` results wait, so memory stays bounded. An error of a call is raised in its place. With
    one thread, the calls are made one by one in this thread.
    """
    if threads == 1:
        yield from map(function, items)
        return
    waiting = deque[Future[R]]()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
