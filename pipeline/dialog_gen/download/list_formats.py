"""Reads lists of URLs in five formats (TSV, CSV, JSON lines, Parquet, text), row by row, in bounded memory.

No row is dropped. A row that cannot be read, such as a line with an extra column, yields neither URL nor caption, and
the download counts it as `no_url`. So the number of rows is the sum of all outcomes. Blank lines are not rows.
Everything that could not be used as it is gets counted in `ListNotes`.

A stray quote in a CSV affects its own line only: if a quoted field is not closed properly, or not within 131,072
characters, its first line counts as a row that cannot be read, and reading continues with the next line.
"""

import csv
import json
import re
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
from pydantic import field_validator, model_validator

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import check_regular
from dialog_gen.core.parquet import open_parquet
from dialog_gen.download.list_columns import CAPTION, URL, delimiter_of, find_column
from dialog_gen.download.list_lines import Line, list_lines
from dialog_gen.download.list_notes import (
    ANOTHER_WIDTH,
    BAD_BYTES,
    BROKEN_QUOTE,
    CAPTION_NO_TEXT,
    NO_OBJECT,
    NO_URL,
    SEVERAL_COLUMNS,
    TOO_LONG,
    URL_NO_TEXT,
    ListNotes,
)
from dialog_gen.download.manifests import ListFormat, Strict

Row = tuple[str | None, str | None]
"""URL and caption."""

_BATCH_ROWS: Final = 8192
_RECORD_CHARS: Final = 1 << 20
"""The longest record of several lines in a CSV: its lines and columns take thirty times as much memory."""
_HEAD_ROWS: Final = 1024
"""Number of JSON lines from which column names are collected."""
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_Read = tuple[int, Row | str]
"""Number of a line, and its row; or, for a row that cannot be read, the note that says why."""


class ListOptions(Strict):
    """The format of a list of URLs."""

    format: ListFormat
    """tsv has no quoting, so each line is a row; csv has double quotes (RFC 4180), and a comma, semicolon, tab or | as
    its header shows; jsonl has one object per line; txt has one URL per line, and no columns."""
    header: bool = True
    """Whether the first row of a tsv or csv names the columns."""
    url: str | int = URL
    """The name of the column, or its number, counted from 0. `url` also finds the names in `STAND_FOR`."""
    caption: str | int | None = CAPTION
    """Like `url`; "" (or None) if the list has no captions."""

    @field_validator("caption", mode="before")
    @classmethod
    def _no_name_is_no_caption(cls, value: Any) -> Any:
        return None if value == "" else value

    @model_validator(mode="after")
    def _columns_can_be_found(self) -> "ListOptions":
        columns = {URL: self.url, CAPTION: self.caption}
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
            if self.format == "txt" and column not in (key, None):
                raise ValueError(f"{key}: a txt has one URL per line and no columns, got {column!r}")
        return self


def list_rows(path: Path, options: ListOptions, notes: ListNotes) -> Iterator[Row]:
    """Yields URL and caption of each row; adds to `notes` what could not be used.

    Raises UsageError for a file that cannot be read, is not a regular file, or lacks a column.
    """
    if options.format == "parquet":
        yield from _parquet_rows(path, options, notes)
        return
    read = {"tsv": _tsv_rows, "csv": _csv_rows, "jsonl": _json_rows, "txt": _txt_rows}[options.format]
    has_header = options.header and options.format in ("tsv", "csv")
    with list_lines(path, notes, header=has_header) as lines:
        for line, row in read(lines, path, options, notes):
            if isinstance(row, str):
                notes.add(row, path, f"line {line}")
                yield None, None
                continue
            if row[0] is None:
                notes.add(NO_URL, path, f"line {line}")
            yield row


def _txt_rows(lines: Iterator[Line], _path: Path, _options: ListOptions, _notes: ListNotes) -> Iterator[_Read]:
    for number, line in lines:
        if line is None:
            yield number, TOO_LONG
        elif url := line.strip():
            yield number, SEVERAL_COLUMNS if "\t" in url else (url, None)


def _tsv_rows(lines: Iterator[Line], path: Path, options: ListOptions, _notes: ListNotes) -> Iterator[_Read]:
    # Not read by the csv module: quotes have no meaning in a TSV, and a lone carriage return, as in CC3M, ends no line.
    def records() -> Iterator[tuple[int, list[str] | str]]:
        for number, line in lines:
            if line is None:
                yield number, TOO_LONG
            elif text := line.rstrip("\r\n"):
                yield number, text.split("\t")

    yield from _table_rows(records(), path, options)


def _csv_rows(lines: Iterator[Line], path: Path, options: ListOptions, _notes: ListNotes) -> Iterator[_Read]:
    texts = (text for _, text in lines)
    head: list[str | None] = []
    delimiter = ","
    for text in texts:
        head.append(text)
        if text is None or text.strip():
            wanted = [column for column in (options.url, options.caption) if isinstance(column, str)]
            delimiter = delimiter_of(text or "", wanted)
            break
    yield from _table_rows(_csv_records(chain(head, texts), delimiter), path, options)


def _csv_records(lines: Iterator[str | None], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(number of its first line, columns) of each record; a note for a line that cannot be read."""
    number = 1
    taken: list[str | None] = []  # lines of the current record
    again = deque[str | None]()

    def taking() -> Iterator[str]:
        size = 0
        for line in iter(lambda: again.popleft() if again else next(lines, ""), ""):
            size = size + len(line or "") if taken else 0
            taken.append(line)
            if line is None:
                raise csv.Error
            if size > _RECORD_CHARS:
                raise OverflowError
            yield line

    while True:
        try:
            for row in csv.reader(taking(), strict=True, delimiter=delimiter):
                if row:
                    yield number, row
                number += len(taken)
                taken.clear()
        except csv.Error:
            yield number, TOO_LONG if taken[0] is None else BROKEN_QUOTE
            number += 1
            again.extendleft(reversed(taken[1:]))
            taken.clear()
        except OverflowError:
            # Not read again from its second line, which could take as long for each line.
            yield number, TOO_LONG
            number += len(taken)
            taken.clear()
        else:
            return


def _table_rows(records: Iterator[tuple[int, list[str] | str]], path: Path, options: ListOptions) -> Iterator[_Read]:
    first = next(records, None)
    if first is None:
        return
    start, names = first
    if isinstance(names, str):
        raise UsageError(f"{path}, line {start} cannot be read, but should show the columns: {names}.")
    if options.header:
        url, caption = _places(options, names, path)
    else:
        # Columns have no names, and the first row shows how many there are.
        url, caption = _places(options, [""] * len(names), path)
        records = chain([first], records)
    for line, row in records:
        if isinstance(row, str):
            yield line, row
        elif len(row) == len(names):
            yield line, (row[url] or None, None if caption is None else row[caption])
        else:
            yield line, ANOTHER_WIDTH


class _Number(str):
    """A number in JSON, as it is written there."""

    __slots__ = ()


# One decoder, because `json.loads` with options makes a new one for each line.
_JSON: Final = json.JSONDecoder(parse_int=_Number, parse_float=_Number)


def _json_rows(lines: Iterator[Line], path: Path, options: ListOptions, notes: ListNotes) -> Iterator[_Read]:
    url_key, caption_key = _keys(path, options)
    for line, text in lines:
        if text is None:
            yield line, TOO_LONG
            continue
        if not text.strip():
            continue
        fields = _json_object(text)
        if fields is None:
            yield line, NO_OBJECT
            continue
        url = fields.get(url_key)
        if isinstance(url, _Number) or not isinstance(url, str | None):
            yield line, URL_NO_TEXT
            continue
        caption = None if caption_key is None else fields.get(caption_key)
        if not isinstance(caption, str | None):
            notes.add(CAPTION_NO_TEXT, path, f"line {line}")
            caption = None
        yield line, (_encodable(url) or None, _encodable(caption))


def _keys(path: Path, options: ListOptions) -> tuple[str, str | None]:
    """The keys of URL and caption in the JSON objects."""
    # Objects may omit keys without a value, so names are collected from many objects.
    with list_lines(path, ListNotes(), header=False) as lines:
        objects = [_json_object(text) for _, text in islice(lines, _HEAD_ROWS) if text]
    names = list(dict.fromkeys(name for fields in objects for name in fields or ()))
    asked = None if options.caption is None else str(options.caption)
    if not names:
        return str(options.url), asked
    url, caption = _places(options, names, path)
    # Without a caption in the head, there can still be one further down.
    return names[url], asked if caption is None else names[caption]


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = _JSON.decode(text)
    except (ValueError, RecursionError):  # deeply nested lists raise RecursionError
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _encodable(text: str | None) -> str | None:
    """Replaces lone surrogates, which JSON allows but which cannot be encoded as UTF-8."""
    return text and _LONE_SURROGATE.sub("\ufffd", text)


def _parquet_rows(path: Path, options: ListOptions, notes: ListNotes) -> Iterator[Row]:
    try:
        check_regular(path)
        file = open_parquet(path)
        names: list[str] = file.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no Parquet file: {error}.") from None
    with file:
        url, caption = _places(options, names, path)
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{path} has {names.count(twice[0])} columns {twice[0]!r}: their names must differ.")
        wanted = {URL: names[url]} | ({} if caption is None else {CAPTION: names[caption]})
        for role, name in wanted.items():
            _check_type(role, name, file.schema_arrow.field(name).type, path)
        before = 0
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(wanted.values())):
                urls, bad = _texts(batch.column(wanted[URL]))
                captions: list[str | None] = [None] * len(urls)
                if caption is not None:
                    captions, also_bad = _texts(batch.column(wanted[CAPTION]))
                    bad |= also_bad
                for place, row in enumerate(zip(urls, captions, strict=True)):
                    if not row[0]:
                        notes.add(NO_URL, path, f"row {before + place + 1}")
                    if place in bad:
                        notes.add(BAD_BYTES, path, f"row {before + place + 1}")
                    yield row[0] or None, row[1]
                before += len(urls)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}.") from None


def _check_type(role: str, name: str, kind: pa.DataType, path: Path) -> None:
    """Raises UsageError for a column of a type that cannot be a URL or a caption."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    binaries = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_one(value) for is_one in (*texts, *binaries, *(numbers if role == CAPTION else ()))):
        raise UsageError(
            f"{path}: the column {name!r} holds {kind}, which is no {role}: choose another with --{role}-column."
        )


def _texts(column: pa.Array) -> tuple[list[str | None], set[int]]:
    """The values as texts, and the places of those with bytes that are not UTF-8 and were replaced."""
    if pa.types.is_floating(column.type):
        # pandas stores a missing value as NaN.
        column = pa.array(column.to_numpy(zero_copy_only=False), from_pandas=True)
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.large_string())
    # Arrow does not check that strings are UTF-8.
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    try:
        return [None if value is None else value.decode() for value in values], set()
    except UnicodeDecodeError:
        texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
        # A text can contain U+FFFD itself.
        return texts, {place for place, text in enumerate(texts) if text and text.encode() != values[place]}


def _places(options: ListOptions, names: list[str], path: Path) -> tuple[int, int | None]:
    """The column numbers of URL and caption; no caption for a list that has only a column of URLs."""
    url = find_column(URL, options.url, names, path)
    if options.caption is None or (names == [names[url]] and options.caption == CAPTION):
        return url, None
    return url, find_column(CAPTION, options.caption, names, path)
