"""Arrow files of training sets and pixel sets: uncompressed, so that random rows are read without loading the file.

This module is the only definition of their columns.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from torch import Tensor

from dialog_gen.clip.text.tokens import Ids, TextEncoder, join_ids, padded
from dialog_gen.core.errors import UsageError

# pyarrow.compute creates its functions at import time, so the type checker does not know them.
_compute: Any = pyarrow.compute


def rows_schema(*image_fields: pa.Field) -> pa.Schema:
    """The schema of the rows; `image_fields` are the columns between an image's id and its texts."""
    ids = pa.list_(pa.int32())
    texts = {
        "caption": ids,
        "caption_truncated": pa.bool_(),
        "dialogues": pa.list_(ids),
        "dialogues_truncated": pa.list_(pa.bool_()),
        "concatenated_truncated": pa.bool_(),
    }
    fields = [pa.field(name, kind, nullable=False) for name, kind in texts.items()]
    return pa.schema([pa.field("image_id", pa.string(), nullable=False), *image_fields, *fields])


def text_columns(encoder: TextEncoder, captions: list[str], dialogues: list[list[str]]) -> list[pa.Array]:
    """The columns of `rows_schema` from `caption` on; `dialogues` contains the text of each QA pair of each image."""
    caption_ids, captions_cut = encoder(captions)
    pair_ids, pairs_cut = encoder([text for texts in dialogues for text in texts])
    ends = np.cumsum([0, *map(len, dialogues)])
    rows = [slice(start, end) for start, end in pairwise(ends.tolist())]
    frame = len(encoder.start) + len(encoder.end)
    joined = [sum(len(ids) - frame for ids in pair_ids[row]) + frame for row in rows]
    too_long = [
        length > encoder.context_length or any(pairs_cut[row]) for length, row in zip(joined, rows, strict=True)
    ]
    offsets = pa.array(ends, pa.int32())
    return [
        id_lists(caption_ids),
        pa.array(captions_cut, pa.bool_()),
        pa.ListArray.from_arrays(offsets, id_lists(pair_ids)),
        pa.ListArray.from_arrays(offsets, pa.array(pairs_cut, pa.bool_())),
        pa.array(too_long, pa.bool_()),
    ]


def id_lists(texts: Sequence[Ids]) -> pa.ListArray:
    """A column of token id lists, one per text."""
    offsets = np.cumsum([0, *map(len, texts)])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(np.concatenate([np.empty(0, np.int32), *texts]))
    )


class Piece:
    """A view of a record batch of a file; it copies nothing."""

    def __init__(self, batch: pa.RecordBatch, column: str, shape: Sequence[int]) -> None:
        """`column`: the numbers that represent the image; `shape`: their shape per row."""
        columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
        self.columns = columns
        self.image_ids = columns["image_id"]
        self.values: npt.NDArray[Any] = columns[column].values.to_numpy().reshape(-1, *shape)
        """Shape (rows, *shape)."""
        self._caption_ends: npt.NDArray[np.int32] = columns["caption"].offsets.to_numpy()
        self._caption_ids: Ids = columns["caption"].values.to_numpy()
        self._pair_ends: npt.NDArray[np.int32] = columns["dialogues"].offsets.to_numpy()
        self._dialogue_ends: npt.NDArray[np.int32] = columns["dialogues"].values.offsets.to_numpy()
        self._dialogue_ids: Ids = columns["dialogues"].values.values.to_numpy()

    def __len__(self) -> int:
        return len(self.values)

    def caption(self, row: int) -> Ids:
        """Token ids of the caption."""
        return self._caption_ids[self._caption_ends[row] : self._caption_ends[row + 1]]

    def pair_count(self, row: int) -> int:
        """Number of QA pairs of the image."""
        return int(self._pair_ends[row + 1] - self._pair_ends[row])

    def pair(self, row: int, number: int) -> Ids:
        """Token ids of QA pair `number`, counted from 0."""
        place = self._pair_ends[row] + number
        return self._dialogue_ids[self._dialogue_ends[place] : self._dialogue_ends[place + 1]]


Place = tuple[Piece, int]
"""A record batch and the number of a row in it."""


AnyPiece = TypeVar("AnyPiece", bound=Sized)


class MappedRows(Generic[AnyPiece]):
    """Random access to the rows of all files of a set."""

    def __init__(
        self, folder: Path, shards: Iterable[tuple[str, int]], piece: Callable[[pa.RecordBatch], AnyPiece]
    ) -> None:
        """`shards`: name and number of rows of each; `piece`: makes the view of a record batch.

        Raises UsageError for a file that is missing, damaged or has another number of rows.
        """
        self._pieces: list[AnyPiece] = []
        for shard, count in shards:
            file = folder / f"{shard}.arrow"
            try:
                pieces = [piece(batch) for batch in open_rows(file).to_batches()]
            except (OSError, ValueError, KeyError) as error:
                raise UsageError(
                    f"{file} cannot be read ({error}): remove {folder.parent} and make it again."
                ) from error
            if sum(map(len, pieces)) != count:
                raise UsageError(
                    f"{file} has not the {count} rows it should have: remove {folder.parent} and make it again."
                )
            self._pieces += pieces
        self._starts = np.cumsum([0, *map(len, self._pieces)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def places(self, rows: Sequence[int] | npt.NDArray[Any]) -> list[tuple[AnyPiece, int]]:
        """Locates the given rows. Raises IndexError for a row that does not exist."""
        order = np.asarray(rows, np.int64)
        if len(order) and not 0 <= order.min() <= order.max() < len(self):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}, got {order.min()} to {order.max()}")
        which = np.searchsorted(self._starts, order, side="right") - 1
        return [
            (self._pieces[number], row)
            for number, row in zip(which.tolist(), (order - self._starts[which]).tolist(), strict=True)
        ]


class RowFiles(MappedRows[Piece]):
    """The rows of a training or pixel set."""

    def __init__(self, folder: Path, shards: Iterable[tuple[str, int]], column: str, shape: Sequence[int]) -> None:
        """Opens the files; `column` and `shape` as in `Piece`, the other parameters as in `MappedRows`."""
        super().__init__(folder, shards, lambda batch: Piece(batch, column, shape))

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """The values of a numeric column in all rows, in order."""
        return np.concatenate([piece.columns[column].to_numpy() for piece in self._pieces])


class TokenBatches:
    """Token ids of rows as int64 tensors (N, L).

    Texts are padded to the longest text or, with `full_length`, to the context length.
    """

    def __init__(self, tokenizer: dict[str, Any], context_length: int | None = None) -> None:
        """`tokenizer`: as in `TextEncoder.config`. `context_length`: truncates texts to fewer tokens than stored."""
        self.context_length: int = context_length or tokenizer["context_length"]
        self._pad_id: int = tokenizer["pad_id"]
        self._start: list[int] = tokenizer["start"]
        self._end: list[int] = tokenizer["end"]

    def captions(self, places: Sequence[Place], *, full_length: bool) -> Tensor:
        """The captions of the rows at `places`."""
        return self.tensor([piece.caption(row) for piece, row in places], full_length=full_length)

    def dialogues(self, places: Sequence[Place], epoch: int, *, concatenate: bool, full_length: bool) -> Tensor:
        """One QA pair per image, chosen by `epoch`, or all pairs joined if `concatenate` is set.

        An image with P pairs uses each of them once in P epochs; the image's id determines the first one.
        """
        texts: list[Ids] = []
        for piece, row in places:
            pairs = piece.pair_count(row)
            if concatenate:
                parts = [piece.pair(row, pair) for pair in range(pairs)]
                texts.append(join_ids(parts, self._start, self._end, self.context_length))
            else:
                first = zlib.crc32(piece.image_ids[row].as_py().encode())
                texts.append(piece.pair(row, (epoch + first) % pairs))
        return self.tensor(texts, full_length=full_length)

    def tensor(self, texts: Sequence[Ids], *, full_length: bool) -> Tensor:
        """Texts as token ids -> (N, L), truncated to the context length and padded."""
        cut = [
            join_ids([ids], self._start, self._end, self.context_length) if len(ids) > self.context_length else ids
            for ids in texts
        ]
        return padded(cut, self._pad_id, self.context_length if full_length else 0)


def open_rows(file: Path) -> Any:
    """Memory-maps a file as an Arrow table. Raises OSError or ValueError."""
    # The mapping outlives the file descriptor. Keeping one open descriptor per shard could exceed the system's limit.
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def rows_made_from(file: Path, fingerprint: str) -> Any:
    """Like `open_rows`, but returns None if the file is missing, damaged or has another fingerprint."""
    try:
        table = open_rows(file)
    except (OSError, ValueError):
        return None
    return table if (table.schema.metadata or {}).get(b"fingerprint") == fingerprint.encode() else None


def count_rows(file: Path, fingerprint: str) -> Counter[str] | None:
    """Numbers of rows, of pairs and of truncated texts in a shard; None in the same cases as `rows_made_from`."""
    table = rows_made_from(file, fingerprint)
    if table is None:
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
