"""Reads lists of URLs in four formats (TSV, CSV, JSON lines, Parquet), row by row, in constant memory.

No row is dropped. A row that cannot be read, such as a line with an extra column, yields neither URL nor caption, and
the download counts it as `bad_url`. So the number of rows is the sum of all outcomes. Blank lines are not rows. Bytes
that are not valid UTF-8 are replaced by U+FFFD.

A stray quote in a CSV affects its own line only: if a quoted field is not closed properly, or not within 131,072
characters, its first line counts as a row that cannot be read, and reading continues with the next line.
"""

import csv
import gzip
import json
import logging
import re
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
from pydantic import model_validator

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.parquet import open_parquet
from dialog_gen.download.manifests import ListFormat, Strict

Row = tuple[str | None, str | None]
"""URL and caption."""

_BATCH_ROWS: Final = 8192
_HEAD_ROWS: Final = 1024
"""Number of JSON lines from which column names are collected."""
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_GZIP_MAGIC: Final = b"\x1f\x8b"
_BAD: Final[Row] = (None, None)

_log = logging.getLogger(__name__)


class ListOptions(Strict):
    """The format of a list of URLs."""

    format: ListFormat
    """tsv has no quoting, so each line is a row; csv has double quotes (RFC 4180); jsonl has one object per line."""
    header: bool = True
    """Whether the first row of a tsv or csv names the columns."""
    url: str | int = "url"
    """The name of the column, or its number, counted from 0."""
    caption: str | int | None = "caption"
    """Like `url`; None if the list has no captions."""

    @model_validator(mode="after")
    def _columns_can_be_found(self) -> "ListOptions":
        columns = {"url": self.url, "caption": self.caption}
        numbered = self.format in ("tsv", "csv") and not self.header
        for key, column in columns.items():
            if numbered and isinstance(column, str):
                raise ValueError(
                    f"{key}: without a header columns have numbers from 0 on, not names such as {column!r}"
                )
            if isinstance(column, int) and column < 0:
                raise ValueError(f"{key}: columns are counted from 0 on, got {column}")
            if self.format == "jsonl" and isinstance(column, int):
                raise ValueError(f"{key}: keys of JSON objects have names, not numbers such as {column}")
        return self


def list_rows(path: Path, options: ListOptions) -> Iterator[Row]:
    """Yields URL and caption of each row; logs the number of rows that could not be read.

    Raises UsageError for a file that cannot be read or lacks a column.
    """
    if options.format == "parquet":
        yield from _parquet_rows(path, options)
        return
    bad, first_bad = 0, 0
    with _reading(path) as file:
        for line, row in {"tsv": _tsv_rows, "csv": _csv_rows, "jsonl": _json_rows}[options.format](file, path, options):
            if row is _BAD:
                bad += 1
                first_bad = first_bad or line
            yield row
    if bad:
        _log.warning("%s: %d rows cannot be read, the first in line %d; they count as bad_url", path, bad, first_bad)


def _tsv_rows(file: BinaryIO, path: Path, options: ListOptions) -> Iterator[tuple[int, Row]]:
    # Not read by the csv module: quotes have no meaning in a TSV, and a lone carriage return, as in CC3M, ends no line.
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(_lines(file), 1))
    yield from _table_rows(((number, line.split("\t")) for number, line in lines if line), path, options)


def _csv_rows(file: BinaryIO, path: Path, options: ListOptions) -> Iterator[tuple[int, Row]]:
    yield from _table_rows(_csv_records(_lines(file)), path, options)


def _csv_records(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, columns) of each record; no columns for a line that cannot be read."""
    number = 1
    taken: list[str] = []  # lines of the current record
    again = deque[str]()

    def taking() -> Iterator[str]:
        while (line := again.popleft() if again else next(lines, None)) is not None:
            taken.append(line)
            yield line

    while True:
        try:
            for row in csv.reader(taking(), strict=True):
                if row:
                    yield number, row
                number += len(taken)
                taken.clear()
        except csv.Error:
            yield number, []
            number += 1
            again.extendleft(reversed(taken[1:]))
            taken.clear()
        else:
            return


def _table_rows(lines: Iterator[tuple[int, list[str]]], path: Path, options: ListOptions) -> Iterator[tuple[int, Row]]:
    first = next(lines, None)
    if first is None:
        return
    start, names = first
    if not names:
        raise UsageError(f"{path}, line {start} cannot be read, but should show the columns: is a quote not closed?")
    if options.header:
        url, caption = _places(options, names, path)
    else:
        # Columns have no names, and the first row shows how many there are.
        url, caption = _places(options, [""] * len(names), path)
        lines = chain([first], lines)
    for line, row in lines:
        if len(row) == len(names):
            yield line, (row[url] or None, None if caption is None else row[caption])
        else:
            yield line, _BAD


def _json_rows(file: BinaryIO, path: Path, options: ListOptions) -> Iterator[tuple[int, Row]]:
    objects = ((line, _json_object(text)) for line, text in enumerate(_lines(file), 1) if text.strip())
    # Objects may omit keys without a value, so column names are collected from many objects.
    head = list(islice(objects, _HEAD_ROWS))
    if names := list(dict.fromkeys(name for _, fields in head for name in fields or ())):
        _places(options, names, path)
    for line, fields in chain(head, objects):
        if fields is None:
            yield line, _BAD
            continue
        url, caption = fields.get(str(options.url)), fields.get(str(options.caption))
        if isinstance(url, str | None) and isinstance(caption, str | None):
            yield line, (_encodable(url) or None, _encodable(caption))
        else:
            yield line, _BAD


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # deeply nested lists raise RecursionError
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _encodable(text: str | None) -> str | None:
    """Replaces lone surrogates, which JSON allows but which cannot be encoded as UTF-8."""
    return text and _LONE_SURROGATE.sub("\ufffd", text)


def _parquet_rows(path: Path, options: ListOptions) -> Iterator[Row]:
    try:
        file = open_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is no Parquet file: {error}.") from None
    with file:
        names: list[str] = file.schema_arrow.names
        url, caption = _places(options, names, path)
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{path} has {names.count(twice[0])} columns {twice[0]!r}: their names must differ.")
        wanted = [names[place] for place in (url, caption) if place is not None]
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                columns = [_texts(batch.column(name)) for name in wanted]
                urls = [found or None for found in columns[0]]
                yield from zip(urls, columns[1] if caption is not None else [None] * len(urls), strict=True)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}.") from None


def _texts(column: pa.Array) -> list[str | None]:
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.large_string())
    # Arrow does not check that strings are UTF-8.
    values = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in values]


def _places(options: ListOptions, names: list[str], path: Path) -> tuple[int, int | None]:
    """The column numbers of URL and caption."""

    def place(key: str, column: str | int) -> int:
        if isinstance(column, int):
            if column < len(names):
                return column
            raise UsageError(
                f"{path} has {len(names)} columns, the {key} should be in number {column} (counted from 0)."
            )
        if names.count(column) > 1:
            raise UsageError(f"{path} has {names.count(column)} columns {column!r}, which one is the {key}?")
        if column in names:
            return names.index(column)
        raise UsageError(
            f"{path} has no column {column!r} for the {key}: {did_you_mean(column, names)}. "
            "A manifest (TOML) can give other names."
        )

    return place("url", options.url), None if options.caption is None else place("caption", options.caption)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines that end with a line feed. Bytes that are not valid UTF-8 become U+FFFD."""
    for number, line in enumerate(file):
        text = line.decode("utf-8", "replace")
        yield text.removeprefix("\ufeff") if number == 0 else text


@contextmanager
def _reading(path: Path) -> Generator[BinaryIO, None, None]:
    """Opens a text file for reading bytes; unpacks it if its first bytes are those of gzip."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            with gzip.open(raw) if packed else raw as file:
                yield cast("BinaryIO", file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is damaged: {error}.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
