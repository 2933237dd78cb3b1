"""Uniform samples of a dataset's rows, and rows by their place, without reading the images of the others."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Generic, TypeVar

from dialog_gen.core.hashing import hash_64
from dialog_gen.dataset.folder import DatasetFolder, FileEntry

T = TypeVar("T")
Place = tuple[int, int, int, FileEntry]
"""Where a row is: the number of its file, its row group, its row in the group, and the file."""


class Smallest(Generic[T]):
    """Keeps the `count` items with the smallest keys of a stream. Of equal keys, the first stay."""

    def __init__(self, count: int) -> None:
        self._count, self._seen = count, 0
        self._heap: list[tuple[int, int, T]] = []

    def add(self, key: int, item: T) -> None:
        """Keeps an item if its key is among the smallest so far."""
        self._seen += 1
        entry = (-key, -self._seen, item)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[T]:
        """The items, the smallest key first."""
        return [item for *_, item in sorted(self._heap, reverse=True)]


def places(
    folder: DatasetFolder, columns: Sequence[str], *, part: str = "data"
) -> Iterator[tuple[Place, tuple[Any, ...]]]:
    """Yields each row's place with its values of these columns. `part` is "data" or "rejects".

    Raises UsageError for a missing or damaged file.
    """
    files = (entry for manifest in folder.manifests() for entry in manifest.files if entry.path.startswith(f"{part}/"))
    for number, entry in enumerate(files):
        for group, table in enumerate(folder.row_groups(entry, columns)):
            values = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
            for row, found in enumerate(values):
                yield (number, group, row, entry), found


def rows_at(
    folder: DatasetFolder, chosen: Iterable[Place], columns: Sequence[str]
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the rows at these places with the places, in the dataset's order. Raises UsageError as `places` does."""
    ordered = sorted(chosen, key=lambda place: place[:3])
    for (_, group), of_group in groupby(ordered, key=lambda place: place[:2]):
        there = list(of_group)
        with folder.row_file(there[0][3]) as file:
            found = file.row_group(group, columns).take([row for _, _, row, _ in there])
        yield from zip(there, found.to_pylist(), strict=True)


def sample_rows(
    folder: DatasetFolder, columns: Sequence[str], count: int, *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yields `count` accepted rows in the dataset's order, or all rows if there are fewer.

    The rows are those whose ids have the smallest hashes with the seed. So the sample does not depend on the shards,
    and mostly stays the same when the dataset grows. Raises UsageError for a missing or damaged file.
    """
    chosen = Smallest[Place](count)
    for place, (image_id,) in places(folder, ["image_id"]):
        chosen.add(hash_64(f"{seed} {image_id}"), place)
    for _, row in rows_at(folder, chosen.items(), columns):
        yield row
