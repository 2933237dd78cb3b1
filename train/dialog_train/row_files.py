"""The files of a training set: Arrow, uncompressed, so that rows are read at random without being loaded.

The only definition of their columns.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from dialog_train.tokens import Ids

# Its functions are made when it is imported: the type checker sees none.
_compute: Any = pyarrow.compute


def rows_schema(width: int) -> pa.Schema:
    """Columns of rows; `width`: numbers of a row's vectors, those of all views."""
    ids = pa.list_(pa.int32())
    fields = {
        "image_id": pa.string(),
        "vector": pa.list_(pa.float16(), width),
        "caption": ids,
        "caption_truncated": pa.bool_(),
        "dialogues": pa.list_(ids),
        "dialogues_truncated": pa.list_(pa.bool_()),
        "concatenated_truncated": pa.bool_(),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def id_lists(texts: Sequence[Ids]) -> pa.ListArray:
    """A column of texts."""
    offsets = np.cumsum([0, *map(len, texts)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(texts)))


class Piece:
    """A record batch of a file, without copies."""

    def __init__(self, batch: pa.RecordBatch, width: int, views: int) -> None:
        column: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
        self.image_ids = column["image_id"]
        # (rows, views, width)
        self.vectors: npt.NDArray[np.float16] = column["vector"].values.to_numpy().reshape(-1, views, width)
        self._caption_ends: npt.NDArray[np.int32] = column["caption"].offsets.to_numpy()
        self._caption_ids: Ids = column["caption"].values.to_numpy()
        self._pair_ends: npt.NDArray[np.int32] = column["dialogues"].offsets.to_numpy()
        self._dialogue_ends: npt.NDArray[np.int32] = column["dialogues"].values.offsets.to_numpy()
        self._dialogue_ids: Ids = column["dialogues"].values.values.to_numpy()

    def __len__(self) -> int:
        return len(self.vectors)

    def caption(self, row: int) -> Ids:
        """Token ids of the caption."""
        return self._caption_ids[self._caption_ends[row] : self._caption_ends[row + 1]]

    def pair_count(self, row: int) -> int:
        """QA pairs of the image, 1 or more."""
        return int(self._pair_ends[row + 1] - self._pair_ends[row])

    def pair(self, row: int, number: int) -> Ids:
        """Token ids of a QA pair, from 0."""
        place = self._pair_ends[row] + number
        return self._dialogue_ids[self._dialogue_ends[place] : self._dialogue_ends[place + 1]]


def open_rows(file: Path) -> Any:
    """A file as an Arrow table that is mapped, not read. Raises OSError or ValueError."""
    # The mapping outlives the file's descriptor, of which there are too few for a file a shard.
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def count_rows(file: Path, fingerprint: str) -> Counter[str] | None:
    """What a shard holds and what was cut; None where it is missing, damaged or made from something else."""
    try:
        table = open_rows(file)
    except (OSError, ValueError):
        return None
    if (table.schema.metadata or {}).get(b"fingerprint") != fingerprint.encode():
        return None

    def total(values: Any) -> int:
        return _compute.sum(values).as_py() or 0

    return Counter(
        rows=len(table),
        pairs=total(_compute.list_value_length(table["dialogues"])),
        captions=total(table["caption_truncated"]),
        dialogues=total(_compute.list_flatten(table["dialogues_truncated"])),
        concatenated=total(table["concatenated_truncated"]),
    )
