"""Single rows of a dataset: one by its id, or a few at random, without reading the others."""

import difflib
import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError, check_at_least
from dialog_gen.core.visible import visible
from dialog_gen.dataset.errors import EmptyDatasetError
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, open_dataset
from dialog_gen.dataset.versions import RowFile

_ID = "image_id"
_IDS_COMPARED = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRow:
    """One row of a dataset, and where it is."""

    row: dict[str, Any]
    """The columns of the record; those of a reject have a `status`."""
    file: str
    """The Parquet file, relative to the dataset folder."""
    number: int
    """The row's number in the file, from 0."""


def find_row(dataset: str | Path | DatasetFolder, image_id: str) -> FoundRow:
    """The accepted or rejected row of an image.

    Reads the ids of those row groups only that can contain it. Raises UsageError if no row has this id, which names
    the most similar one of the first ids, and DamagedDatasetError for damaged files.
    """
    folder = open_dataset(dataset)
    entries = (entry for manifest in folder.manifests() for entry in manifest.files)
    for found in folder.each(lambda entry: _search(folder, entry, image_id), entries):
        if found is not None:
            return found
    nearest = _nearest(image_id, islice(_ids(folder), _IDS_COMPARED))
    guess = f"did you mean {visible(nearest)}? Ids" if nearest else "ids"
    raise UsageError(
        f"{folder.location} has no row with the image_id {visible(image_id)}: {guess} are written as "
        f"`dialog-gen sample {folder.location}` shows them."
    )


def _ids(folder: DatasetFolder) -> Iterator[str]:
    for part in ("data", "rejects"):
        for table in folder.tables([_ID], part=part):
            yield from table.column(_ID).to_pylist()


def _nearest(image_id: str, ids: Iterable[str]) -> str | None:
    """The id that contains the given one, as one without its folder or its extension, or else the most similar one."""
    known = list(ids)
    longer = [known_id for known_id in known if image_id and image_id in known_id]
    similar = difflib.get_close_matches(image_id, known, n=1)
    return min(longer, key=len) if longer else next(iter(similar), None)


def random_rows(dataset: str | Path | DatasetFolder, count: int, *, seed: int = 0) -> Iterator[FoundRow]:
    """Yields `count` accepted rows that are drawn uniformly, in the dataset's order; all rows if there are fewer.

    Reads the row groups of the drawn rows only. Raises EmptyDatasetError for a dataset without accepted rows, and
    DamagedDatasetError for damaged files.
    """
    check_at_least("-n", count, 1)
    folder = open_dataset(dataset)
    shards = [(manifest.shard, manifest.data.rows) for manifest in folder.manifests() if manifest.data]
    ends = list(accumulate(rows for _, rows in shards))
    if not ends:
        raise EmptyDatasetError(folder.location)
    for row in sorted(random.Random(seed).sample(range(ends[-1]), min(count, ends[-1]))):
        place = bisect_right(ends, row)
        name, rows = shards[place]
        manifest = folder.readable_manifest(name)
        # A run may have made the shard anew meanwhile, with fewer rows.
        if manifest is not None and manifest.data is not None:
            yield _row_at(folder, manifest.data, min(row - ends[place] + rows, manifest.data.rows - 1))


def _search(folder: DatasetFolder, entry: FileEntry, image_id: str) -> FoundRow | None:
    first = 0
    with folder.row_file(entry) as file:
        for group in range(file.parquet.num_row_groups):
            if _may_contain(file, group, image_id):
                ids = file.row_group(group, [_ID]).column(_ID).to_pylist()
                if image_id in ids:
                    return _found(entry, file, group, ids.index(image_id), first)
            first += file.parquet.metadata.row_group(group).num_rows
    return None


def _may_contain(file: RowFile, group: int, image_id: str) -> bool:
    metadata = file.parquet.metadata.row_group(group)
    columns = (metadata.column(number) for number in range(metadata.num_columns))
    limits = next((column.statistics for column in columns if column.path_in_schema == _ID), None)
    # Parquet orders strings by their bytes, as Python does by their code points: that is the same order.
    return limits is None or not limits.has_min_max or limits.min <= image_id <= limits.max


def _row_at(folder: DatasetFolder, entry: FileEntry, number: int) -> FoundRow:
    with folder.row_file(entry) as file:
        first = group = 0
        while number >= first + (rows := file.parquet.metadata.row_group(group).num_rows):
            first, group = first + rows, group + 1
        return _found(entry, file, group, number - first, first)


def _found(entry: FileEntry, file: RowFile, group: int, place: int, first: int) -> FoundRow:
    row = file.row_group(group).slice(place, 1).to_pylist()[0]
    return FoundRow(row=row, file=entry.path, number=first + place)
