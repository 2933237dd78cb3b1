"""Random access to the rows of all Arrow files of a set, for many rows at once."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_train.data.checked_rows import CHECKSUM, damaged_rows
from dialog_train.data.columns import (
    DamagedRowError,
    Elements,
    FixedLists,
    Lists,
    Numbers,
    Values,
    checksums,
    columns_of,
    expand,
    piece_numbers,
)
from dialog_train.data.mapped_files import MappedFiles


class RowTable:
    """The rows of all files of a set, read for many rows at once.

    Every row is checked when it is read for the first time.
    """

    def __init__(self, folder: Path, shards: Iterable[tuple[str, int]]) -> None:
        """`shards`: name and number of rows of each.

        Raises UsageError for a file that is missing, damaged or has another number of rows.
        """
        shards = list(shards)
        self._files = [folder / f"{shard}.arrow" for shard, _ in shards]
        try:
            mapped = MappedFiles(self._files)
        except OSError as error:
            raise damaged_rows(Path(error.filename) if error.filename else folder) from error
        numbers, lengths, self._file_of, schema = list[list[int]](), list[int](), list[int](), None
        for which, (file, (_, count)) in enumerate(zip(self._files, shards, strict=True)):
            try:
                batches, schema = _pieces(mapped, which)
                found = [piece_numbers(batch, mapped.bytes) for batch in batches]
                if schema.names[-1] != CHECKSUM or len({len(row) for row in [*numbers[:1], *found]}) > 1:
                    raise ValueError("other columns")
            except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
                raise damaged_rows(file) from error
            if sum(map(len, batches)) != count:
                raise UsageError(
                    f"{file} has not the {count_of(count, 'row')} it should have: remove {folder.parent} and "
                    f"make it again."
                )
            numbers += found
            lengths += map(len, batches)
            self._file_of += [which] * len(found)
        self.starts = np.cumsum([0, *lengths])
        """The number of the first row of each piece."""
        self.memory = mapped.tensor
        """The bytes of all files."""
        table = np.array(numbers, np.int64).reshape(len(numbers), -1)
        self.columns = columns_of(schema or (), mapped.bytes, table)
        self._stored: Any = self.columns.pop(CHECKSUM, None)
        # A bit for each row.
        self._checked = np.zeros(-(-len(self) // 8), np.uint8)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def at(self, rows: Sequence[int] | npt.NDArray[Any]) -> Elements:
        """Locates the given rows. Raises IndexError for a row that does not exist, UsageError for a damaged one."""
        order = np.asarray(rows, np.int64)
        if len(order) and not 0 <= order.min() <= order.max() < len(self):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}, got {order.min()} to {order.max()}")
        bits = np.left_shift(1, order & 7).astype(np.uint8)
        is_new = (self._checked[order >> 3] & bits) == 0
        if is_new.any():
            self._check(self._locate(order[is_new]))
            np.bitwise_or.at(self._checked, order[is_new] >> 3, bits[is_new])
        return self._locate(order)

    def strings(self, column: str, of: Elements) -> list[str]:
        """The strings of the rows in a column."""
        return _strings(self.columns[column], of)

    def string_lists(self, column: str, of: Elements) -> list[list[str]]:
        """The lists of strings of the rows in a column."""
        lists: Lists = self.columns[column]
        inner = lists.elements(of)
        counts = inner.end - inner.start
        start = expand(inner.start, counts)
        texts = iter(_strings(lists.inner, Elements(np.repeat(of.piece, counts), start, start + 1)))
        return [list(islice(texts, count)) for count in counts.tolist()]

    def vectors(self, column: str, of: Elements, parts: int = 1, part: Numbers | int = 0) -> npt.NDArray[Any]:
        """The lists of the rows in a column of lists that have the same length: (N, length).

        If they consist of several `parts`, one of them for each row: (N, length / parts).
        """
        lists: FixedLists = self.columns[column]
        values, size = lists.values, lists.size // parts
        width = values.dtype.itemsize
        windows = as_strided(values.all, (max(len(values.all) - size + 1, 0), size), (width, width), writeable=False)
        return windows[values.places(lists.elements(of)) + part * size]

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """The values of a numeric column in all rows, in order."""
        values: Values = self.columns[column]
        pieces = np.arange(len(self._file_of))
        lengths = np.diff(self.starts)
        return values.all[expand(values.places(Elements(pieces, np.zeros_like(lengths), lengths)), lengths)]

    def _locate(self, rows: Numbers) -> Elements:
        piece = np.searchsorted(self.starts, rows, side="right") - 1
        row = rows - self.starts[piece]
        return Elements(piece, row, row + 1)

    def _check(self, of: Elements) -> None:
        try:
            wrong = checksums([*self.columns.values()], of) != self._stored.all[self._stored.places(of)]
            if wrong.any():
                raise DamagedRowError(int(wrong.argmax()))
        except DamagedRowError as error:
            raise damaged_rows(self._files[self._file_of[of.piece[error.number]]]) from None


def _strings(texts: Any, of: Elements) -> list[str]:
    inner, characters = texts.elements(of), texts.values
    starts = characters.places(inner)
    spans = zip(starts.tolist(), (starts + inner.end - inner.start).tolist(), strict=True)
    return [characters.all[start:end].tobytes().decode() for start, end in spans]


def _pieces(mapped: MappedFiles, which: int) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """The record batches of a file, without copying them. Raises ValueError, OSError or ArrowException."""
    buffer = pa.foreign_buffer(mapped.address + mapped.starts[which], mapped.sizes[which], mapped)
    reader: Any = pa.ipc.open_file(pa.BufferReader(buffer))
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate()
    return batches, reader.schema
