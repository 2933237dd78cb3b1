"""Lists of URLs in any of four formats become Parquet files of one shape, row for row, in flat memory.

No row is dropped: one that cannot be read, such as a line with a column too many, has neither URL nor caption, and the
download counts it as `bad_url`. So the rows of the list are the sum of all outcomes.
"""

import csv
import gzip
import json
import logging
import shutil
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.download.fetch import FetchPolicy
from dialog_gen.download.resumable import fetch_file
from dialog_gen.errors import UsageError, did_you_mean
from dialog_gen.manifests import UrlSource, of_split

SCHEMA: Final = pa.schema([("url", pa.string()), ("caption", pa.string())])

ROWS_PER_FILE: Final = 1 << 18

_Row = tuple[str | None, str | None]
_BATCH_ROWS: Final = 8192
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
        part = into.with_name(f"{into.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write(part, rows, rows_per_file, ", ".join(map(str, lists)))
        part.rename(into)
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
    lines = ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(_lines(file), 1))
    yield from _table_rows(lines, path, source)


def _csv_rows(file: BinaryIO, path: Path, source: UrlSource) -> Iterator[tuple[int, _Row]]:
    reader = csv.reader(_lines(file), strict=True)

    def lines() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise UsageError(f"{path}, line {reader.line_num} is no CSV: {error}.") from None

    yield from _table_rows(lines(), path, source)


def _table_rows(lines: Iterator[tuple[int, list[str]]], path: Path, source: UrlSource) -> Iterator[tuple[int, _Row]]:
    first = next(lines, None)
    if first is None:
        return
    names = first[1]
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
    checked = False
    for line, text in enumerate(_lines(file), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            yield line, _BAD
            continue
        fields = cast("dict[str, Any]", row)
        if not checked:
            _places(source, list(fields), path)
            checked = True
        url, caption = fields.get(str(source.url)), fields.get(str(source.caption))
        if isinstance(url, str | None) and isinstance(caption, str | None):
            yield line, (url or None, caption)
        else:
            yield line, _BAD


def _parquet_rows(path: Path, source: UrlSource) -> Iterator[_Row]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is no Parquet file: {error}.") from None
    with file:
        names: list[str] = file.schema_arrow.names
        url, caption = _places(source, names, path)
        wanted = [names[place] for place in (url, caption) if place is not None]
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                columns = [batch.column(name).cast(pa.string()).to_pylist() for name in wanted]
                urls = [found or None for found in columns[0]]
                yield from zip(urls, columns[1] if caption is not None else [None] * len(urls), strict=True)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path} cannot be read: {error}.") from None


def _places(source: UrlSource, names: list[str], path: Path) -> tuple[int, int | None]:
    """Where URL and caption stand among the columns."""

    def place(key: str, column: str | int) -> int:
        if isinstance(column, int):
            if column < len(names):
                return column
            raise UsageError(f"{path} has {len(names)} columns, the {key} should be in number {column} (from 0 on).")
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
