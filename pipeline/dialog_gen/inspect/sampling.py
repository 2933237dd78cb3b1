"""A uniform sample of a dataset's accepted rows, without reading the images of the others."""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from dialog_gen.core.hashing import hash_64
from dialog_gen.dataset.folder import DatasetFolder


def sample_rows(
    folder: DatasetFolder, columns: Sequence[str], count: int, *, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yields `count` rows in the dataset's order, or all rows if there are fewer.

    The rows are those whose ids have the smallest hashes with the seed. So the sample does not depend on the shards,
    and mostly stays the same when the dataset grows. Raises UsageError for a missing or damaged file.
    """
    files = [manifest.data for manifest in folder.manifests()]
    smallest: list[tuple[int, int, int, int]] = []  # a heap of (-hash, file, row group, row in the group)
    for number, entry in enumerate(files):
        for group, table in enumerate(folder.row_groups(entry, ["image_id"]) if entry else ()):
            for row, image_id in enumerate(table.column("image_id").to_pylist()):
                item = (-hash_64(f"{seed} {image_id}"), number, group, row)
                if len(smallest) < count:
                    heapq.heappush(smallest, item)
                else:
                    heapq.heappushpop(smallest, item)
    places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for _, number, group, row in sorted(smallest, key=lambda item: item[1:]):
        places[number, group].append(row)
    for (number, group), rows in places.items():
        entry = files[number]
        assert entry is not None  # noqa: S101 - the rows came from it
        with folder.row_file(entry.path) as file:
            found = file.row_group(group, columns).take(rows)
        yield from found.to_pylist()
