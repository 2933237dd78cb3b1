"""Lists of URLs in any of four formats become Parquet files of one shape, row for row, in flat memory.

No row is dropped: one that cannot be read, such as a line with a column too many, has neither URL nor caption, and the
download counts it as `bad_url`. So the rows of the list are the sum of all outcomes. Blank lines are no rows. Text that
is no Unicode has U+FFFD in its place.

A stray quote in a CSV spoils its own line alone: where a quoted field is not closed as it should, or not within 131,072
characters, its first line counts as a row that cannot be read, and reading goes on with the line after that.
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
import pyarrow.parquet as pq

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import whole_folder
from dialog_gen.core.parquet import open_parquet
from dialog_gen.download.fetch import FetchPolicy
from dialog_gen.download.manifests import UrlSource, of_split
from dialog_gen.download.resumable import fetch_file

SCHEMA: Final = pa.schema([("url", pa.string()), ("caption", pa.string())])

ROWS_PER_FILE: Final = 1 << 18

_Row = tuple[str | None, str | None]
_BATCH_ROWS: Final = 8192
_HEAD_ROWS: Final = 1024
"""Of JSON lines: where the columns are looked for."""
_HALF_CHARACTER: Final = re.compile("[\ud800-\udfff]")
_GZIP_MAGIC: Final = b"\x1f\x8b"
_BAD: Final[_Row] = (None, None)

_log = logging.getLogger(__name__)


def prepare_url_list(
    source: UrlSource,
    split: str,
    into: Path,
    limit: int | None,
    *,
    out: Path,
    policy: FetchPolicy,
    rows_per_file: int = ROWS_PER_FILE,
) -> int:
    """Writes the first `limit` rows of a split to `into`/00000.parquet and so on; returns how many there are.

    The files have `SCHEMA`'s columns and `rows_per_file` rows each, the last one what is left. A list that has to be
    fetched is stored in the folder `out`, where one that was got by hand is looked for, too. `into` appears when it is
    complete; where it exists, it is left as it is.

    Raises UsageError for a list that is not there, cannot be read or lacks a column, and for one without any URL;
    FailedCheckError where it cannot be fetched.
    """
    if not into.exists():
        lists = [fetch_file(file, out, out, policy) for file in of_split(source.files, split)]
        rows = islice(chain.from_iterable(_rows(path, source) for path in lists), limit)
        with whole_folder(into) as part:
            _write(part, rows, rows_per_file, ", ".join(map(str, lists)))
    return sum(pq.read_metadata(path).num_rows for path in into.glob("*.parquet"))


def _write(folder: Path, rows: Iterator[_Row], rows_per_file: int, names: str) -> None:
    with_url = 0
    for number in range(1 << 62):
        of_file = islice(rows, rows_per_file)
        batch = list(islice(of_file, _BATCH_ROWS))
        if not batch:
            break
        with pq.ParquetWriter(folder / f"{number:05d}.parquet", SCHEMA) as writer:
            while batch:
                with_url += sum(1 for url, _ in batch if url)
                urls, captions = zip(*batch, strict=True)
                writer.write_batch(pa.record_batch([urls, captions], schema=SCHEMA))
                batch = list(islice(of_file, _BATCH_ROWS))
    if not with_url:
        raise UsageError(f"{names}: no row has a URL. Are format and columns right?")


def _rows(path: Path, source: UrlSource) -> Iterator[_Row]:
    """URL and caption of each row. Logs how many rows could not be read."""
    if source.format == "parquet":
        yield from _parquet_rows(path, source)
        return
    bad, first_bad = 0, 0
    with _reading(path) as file:
        for line, row in {"tsv": _tsv_rows, "csv": _csv_rows, "jsonl": _json_rows}[source.format](file, path, source):
            if row is _BAD:
                bad += 1
                first_bad = first_bad or line
            yield row
    if bad:
        _log.warning("%s: %d rows cannot be read, the first in line %d; they count as bad_url", path, bad, first_bad)


def _tsv_rows(file: BinaryIO, path: Path, source: UrlSource) -> Iterator[tuple[int, _Row]]:
    # Split by hand: a quote means nothing here, and a lone carriage return, as in CC3M, ends no line.
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(_lines(file), 1))
    yield from _table_rows(((number, line.split("\t")) for number, line in lines if line), path, source)


def _csv_rows(file: BinaryIO, path: Path, source: UrlSource) -> Iterator[tuple[int, _Row]]:
    yield from _table_rows(_csv_records(_lines(file)), path, source)


def _csv_records(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """The records with the number of their first line; one without columns for a line that cannot be read."""
    number = 1
    taken: list[str] = []  # by the record being read
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


def _table_rows(lines: Iterator[tuple[int, list[str]]], path: Path, source: UrlSource) -> Iterator[tuple[int, _Row]]:
    first = next(lines, None)
    if first is None:
        return
    start, names = first
    if not names:
        raise UsageError(f"{path}, line {start} cannot be read, but should show the columns: is a quote not closed?")
    if source.header:
        url, caption = _places(source, names, path)
    else:
        # Columns without names: their number is that of the first row.
        url, caption = _places(source, [""] * len(names), path)
        lines = chain([first], lines)
    for line, row in lines:
        if len(row) == len(names):
            yield line, (row[url] or None, None if caption is None else row[caption])
        else:
            yield line, _BAD


def _json_rows(file: BinaryIO, path: Path, source: UrlSource) -> Iterator[tuple[int, _Row]]:
    objects = ((line, _json_object(text)) for line, text in enumerate(_lines(file), 1) if text.strip())
    # An object may leave out what it has no value for: the columns are those of many.
    head = list(islice(objects, _HEAD_ROWS))
    if names := list(dict.fromkeys(name for _, fields in head for name in fields or ())):
        _places(source, names, path)
    for line, fields in chain(head, objects):
        if fields is None:
            yield line, _BAD
            continue
        url, caption = fields.get(str(source.url)), fields.get(str(source.caption))
        if isinstance(url, str | None) and isinstance(caption, str | None):
            yield line, (_whole(url) or None, _whole(caption))
        else:
            yield line, _BAD


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # the latter of [[[[...
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _whole(text: str | None) -> str | None:
    """JSON can spell half a character, which no file could hold."""
    return text and _HALF_CHARACTER.sub("\ufffd", text)


def _parquet_rows(path: Path, source: UrlSource) -> Iterator[_Row]:
    try:
        file = open_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is no Parquet file: {error}.") from None
    with file:
        names: list[str] = file.schema_arrow.names
        url, caption = _places(source, names, path)
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


def _places(source: UrlSource, names: list[str], path: Path) -> tuple[int, int | None]:
    """Where URL and caption stand among the columns."""

    def place(key: str, column: str | int) -> int:
        if isinstance(column, int):
            if column < len(names):
                return column
            raise UsageError(f"{path} has {len(names)} columns, the {key} should be in number {column} (from 0 on).")
        if names.count(column) > 1:
            raise UsageError(f"{path} has {names.count(column)} columns {column!r}, which one is the {key}?")
        if column in names:
            return names.index(column)
        raise UsageError(
            f"{path} has no column {column!r} for the {key}: {did_you_mean(column, names)}. "
            "A manifest (TOML) can give other names."
        )

    return place("url", source.url), None if source.caption is None else place("caption", source.caption)


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines that end with a line feed; bytes that are no UTF-8 become U+FFFD."""
    for number, line in enumerate(file):
        text = line.decode("utf-8", "replace")
        yield text.removeprefix("\ufeff") if number == 0 else text


@contextmanager
def _reading(path: Path) -> Generator[BinaryIO, None, None]:
    """A text file's bytes, unpacked where it is gzip by its first bytes."""
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
