"""Work on many independent items, such as the shards of a dataset: the interface, and the plain loop.

Code that works on shards takes a `Map`; the executor that the user chose gives it. So this code says what is done with
a shard, and the executor decides in which process.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from dialog_gen.core.parallel import in_order

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[float], None]
"""Takes the number of units that are done since the last call."""


def ignore_advance(count: float) -> None:
    """An `Advance` that does nothing."""


class Map(Protocol):
    """Applies a function to items."""

    elsewhere: bool
    """Whether the function runs in other processes, perhaps on other machines. Then several calls run at once, and an
    item whose process dies is begun again in another one."""

    def __call__(
        self,
        function: Callable[[Item, Advance], Result],
        items: Iterable[Item],
        advance: Advance = ignore_advance,
        *,
        gpu: bool = False,
        threads: int = 1,
        shared: Sequence[Path] = (),
    ) -> Iterator[tuple[Item, Result]]:
        """Yields each item with the result of the function, in the order of the items; raises what it raises.

        The function reports its progress to its second argument, from where it comes to `advance`. Function, items and
        results can be pickled. The items are not read far ahead. `gpu` says that the function is faster on a GPU;
        `threads`, how many calls one process may make at a time: more than one only if they mostly wait for requests,
        and report no progress. `shared` are the files that the function needs to find under the same path: the work
        ends with UsageError if a machine does not have them.
        """
        ...


class _Here:
    elsewhere = False

    def __call__(
        self,
        function: Callable[[Item, Advance], Result],
        items: Iterable[Item],
        advance: Advance = ignore_advance,
        *,
        gpu: bool = False,
        threads: int = 1,
        shared: Sequence[Path] = (),
    ) -> Iterator[tuple[Item, Result]]:
        yield from in_order(lambda item: (item, function(item, advance)), items, threads=threads)


map_here: Map = _Here()
"""One item after another, or as many at a time as there are threads, in this process."""
