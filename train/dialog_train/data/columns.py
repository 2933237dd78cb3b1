"""Columns of Arrow files, read for many rows at once, wherever the rows are.

A file consists of record batches, here pieces, and each of them has its own buffers. A table has one row of numbers per
piece: where the buffers begin and how long they are. So a few index operations read a column for rows of any pieces.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Numbers = npt.NDArray[np.int64]
_ALIGNMENT = 8  # of Arrow's buffers, in bytes


class DamagedRowError(ValueError):
    """A row is not what was written. `number` is its place among those that were asked for."""

    def __init__(self, number: int) -> None:
        super().__init__(f"row {number} is damaged")
        self.number = number


class Elements(NamedTuple):
    """For each of N rows, the elements of a column that belong to it: from `start` to `end` in a piece's array."""

    piece: Numbers
    start: Numbers
    end: Numbers


class Part(NamedTuple):
    """For each of N rows, bytes of `memory` from `start` to `end`."""

    memory: npt.NDArray[np.uint8]
    start: Numbers
    end: Numbers


def expand(starts: Numbers, counts: Numbers) -> Numbers:
    """The numbers from each start on, `counts` of them each, as one array."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Table:
    """The bytes of all files, and the numbers of each piece (pieces, numbers)."""

    memory: npt.NDArray[np.uint8]
    numbers: Numbers


class Values:
    """A column of numbers."""

    def __init__(self, table: Table, first: int, dtype: npt.DTypeLike) -> None:
        self._starts, self.lengths = table.numbers[:, first], table.numbers[:, first + 1]
        self.memory, self.dtype = table.memory, np.dtype(dtype)
        self.all: npt.NDArray[Any] = table.memory.view(dtype)
        """The memory as values of this type; `places` are indices into it."""

    def check(self, of: Elements) -> None:
        """Raises DamagedRowError if elements do not exist."""
        wrong = (of.start < 0) | (of.end < of.start) | (of.end > self.lengths[of.piece])
        if wrong.any():
            raise DamagedRowError(int(wrong.argmax()))

    def places(self, of: Elements) -> Numbers:
        """The index of each row's first element in `all`."""
        self.check(of)
        return self._starts[of.piece] // self.dtype.itemsize + of.start

    def parts(self, of: Elements) -> Iterator[Part]:
        """The bytes of the elements."""
        start = self.places(of) * self.dtype.itemsize
        yield Part(self.memory, start, start + (of.end - of.start) * self.dtype.itemsize)


class Bits(Values):
    """A column of booleans, which takes a bit each."""

    def __init__(self, table: Table, first: int) -> None:
        super().__init__(table, first, np.uint8)

    def parts(self, of: Elements) -> Iterator[Part]:
        """A byte for each boolean."""
        self.check(of)
        counts = of.end - of.start
        places = expand(self._starts[of.piece] * 8 + of.start, counts)
        bits: Any = (self.memory[places >> 3] >> (places & 7).astype(np.uint8)) & 1
        ends = np.cumsum(counts)
        yield Part(bits, ends - counts, ends)


class _Nested:
    """A column whose elements are in a column of their own."""

    inner: "Column"

    @property
    def values(self) -> Values:
        """The inner column of lists of numbers, and of strings."""
        if not isinstance(self.inner, Values):
            raise TypeError("a list of lists")
        return self.inner


class Lists(_Nested):
    """A column of lists or strings, whose elements are in a column of their own."""

    def __init__(self, offsets: Values, inner: "Column") -> None:
        self._offsets, self.inner = offsets, inner

    def elements(self, of: Elements) -> Elements:
        """The elements of the inner column that belong to each row."""
        # A list that ends at n has offset number n.
        places = self._offsets.places(of)
        start, end = (self._offsets.all[place].astype(np.int64) for place in (places, places + of.end - of.start))
        empty = of.start == of.end
        return Elements(of.piece, np.where(empty, 0, start), np.where(empty, 0, end))

    def parts(self, of: Elements) -> Iterator[Part]:
        """The ends of the lists, counted from the beginning of each row, and what the inner column gives."""
        inner = self.elements(of)
        counts = of.end - of.start + 1
        offsets = self._offsets.all[expand(self._offsets.places(of), counts)]
        ends = np.cumsum(counts)
        own = offsets - np.repeat(offsets[ends - counts], counts)
        yield Part(own.view(np.uint8), (ends - counts) * own.itemsize, ends * own.itemsize)
        yield from self.inner.parts(inner)


class FixedLists(_Nested):
    """A column of lists that all have the same length."""

    def __init__(self, size: int, inner: "Column") -> None:
        self.size, self.inner = size, inner

    def elements(self, of: Elements) -> Elements:
        """The elements of the inner column that belong to each row."""
        return Elements(of.piece, of.start * self.size, of.end * self.size)

    def parts(self, of: Elements) -> Iterator[Part]:
        """What the inner column gives."""
        return self.inner.parts(self.elements(of))


Column = Values | Lists | FixedLists


def piece_numbers(batch: Any, memory: npt.NDArray[np.uint8]) -> list[int]:
    """The numbers of a record batch for `columns_of`: where its buffers begin in `memory`, and how long they are.

    Raises ValueError for a batch that is damaged, or that no writer of this package makes.
    """
    return [number for array in batch.columns for number in _numbers(array, memory)]


def _numbers(array: Any, memory: npt.NDArray[np.uint8]) -> Iterator[int]:
    if array.offset or array.null_count:
        raise ValueError("an array with an offset or null values")
    kind, buffers = array.type, array.buffers()
    if pa.types.is_fixed_size_list(kind):
        yield from _numbers(array.values, memory)
        return
    yield _start(buffers[1], memory)
    yield len(array)
    if pa.types.is_list(kind):
        yield from _numbers(array.values, memory)
    elif pa.types.is_string(kind):
        yield _start(buffers[2], memory)
        yield buffers[2].size if buffers[2] else 0


def _start(buffer: Any, memory: npt.NDArray[np.uint8]) -> int:
    if not buffer:
        return 0
    start = buffer.address - memory.ctypes.data
    # Arrow copies a buffer that does not begin where it should.
    if not 0 <= start <= len(memory) - buffer.size or start % _ALIGNMENT:
        raise ValueError("a buffer is not where it should be")
    return start


def columns_of(schema: Any, memory: npt.NDArray[np.uint8], numbers: Numbers) -> dict[str, Any]:
    """The columns of pieces with a schema. `numbers` (pieces, n): those of all arrays of each piece, in order."""
    table, columns, first = Table(memory, numbers), dict[str, Any](), 0
    for field in schema:
        columns[field.name], first = _column(table, field.type, first)
    return columns


def _column(table: Table, kind: Any, first: int) -> tuple[Column, int]:
    """The column of a type whose numbers begin at `first` in the table, and where those of the next one begin."""
    if pa.types.is_fixed_size_list(kind):
        inner, after = _column(table, kind.value_type, first)
        return FixedLists(kind.list_size, inner), after
    if pa.types.is_list(kind):
        inner, after = _column(table, kind.value_type, first + 2)
        return Lists(Values(table, first, np.int32), inner), after
    if pa.types.is_string(kind):
        return Lists(Values(table, first, np.int32), Values(table, first + 2, np.uint8)), first + 4
    if pa.types.is_boolean(kind):
        return Bits(table, first), first + 2
    return Values(table, first, kind.to_pandas_dtype()), first + 2


def checksums(columns: Iterable[Column], of: Elements) -> npt.NDArray[np.uint32]:
    """The CRC-32 of the values of each row in all columns. Raises DamagedRowError if a row's elements do not exist."""
    crcs = [0] * len(of.piece)
    crc32 = zlib.crc32
    for column in columns:
        for part in column.parts(of):
            memory: Any = memoryview(part.memory)  # pyright: ignore[reportArgumentType] - numpy's stubs
            spans = zip(part.start.tolist(), part.end.tolist(), crcs, strict=True)
            crcs = [crc32(memory[start:end], crc) for start, end, crc in spans]
    return np.array(crcs, np.uint32)


def crc32_of(texts: Lists, of: Elements) -> npt.NDArray[np.uint32]:
    """The CRC-32 of the string of each row, as `zlib.crc32` gives it."""
    inner, characters = texts.elements(of), texts.values
    starts, counts = characters.places(inner), inner.end - inner.start
    order = np.argsort(-counts, kind="stable")
    starts, counts = starts[order], counts[order]
    crcs = np.zeros(len(order), np.uint32)
    # How many strings are longer than 0, 1, 2, ... bytes: they come first.
    longer = len(counts) - np.searchsorted(counts[::-1], np.arange(int(counts.max(initial=0))), side="right")
    for byte, count in enumerate(longer.tolist()):
        crcs[:count] = _next(crcs[:count], characters.all[starts[:count] + byte])
    found = np.empty_like(crcs)
    found[order] = crcs
    return found


def crc32_after(crcs: npt.NDArray[np.uint32], text: str) -> npt.NDArray[np.uint32]:
    """The CRC-32 of strings that end with `text`, from the CRC-32 of what comes before it."""
    for byte in text.encode():
        crcs = _next(crcs, np.uint8(byte))
    return crcs


# `zlib.crc32` inverts all bits before and after; so this is the usual table, seen from outside.
_INVERTED = np.uint32(0xFFFFFFFF)
_TABLE = np.array([zlib.crc32(bytes([255 - byte])) for byte in range(256)], np.uint32) ^ np.uint32(0xFF000000)


def _next(crcs: npt.NDArray[np.uint32], byte: Any) -> npt.NDArray[np.uint32]:
    inner: Any = crcs ^ _INVERTED
    return (_TABLE[(inner ^ byte) & 0xFF] ^ (inner >> 8)) ^ _INVERTED
