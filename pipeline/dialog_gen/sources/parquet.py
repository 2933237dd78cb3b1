"""Parquet files with a column of images, such as those that `datasets` or dialog-gen itself write."""

import logging
import posixpath
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.errors import UsageError
from dialog_gen.core.parquet import open_parquet
from dialog_gen.sources.base import SOURCES, ImageReference, SourceImage, SourcePart, StoredImage, safe_shard_name
from dialog_gen.sources.columns import ID_COLUMNS, IMAGE_COLUMNS, ImageColumns, find_columns, python_values
from dialog_gen.sources.kept import KeptReaders
from dialog_gen.sources.listing import FileSet, ListedFile, name_of, printable
from dialog_gen.sources.sidecars import text_of
from dialog_gen.sources.unused import Unused

__all__ = ["ID_COLUMNS", "IMAGE_COLUMNS", "ParquetFile"]

_log = logging.getLogger(__name__)

_ROWS_AT_ONCE: Final = 16  # keeps a batch of images small
_READERS: Final = KeptReaders["_RowReader"]()


@SOURCES.register("parquet")
@dataclass(frozen=True, slots=True)
class ParquetFile(SourcePart):
    """One file. The id of an image is in one of `ID_COLUMNS`; otherwise it is "label/row number".

    The label is the file's path without extension (`Folder.labels`). The image of a row is the first of a list, or all
    that are not empty (`with_all_images`). An image that has a path but no bytes is read from that file if it is in the
    source's folder.
    """

    accepted: ClassVar[str] = "*.parquet"
    extensions: ClassVar[tuple[str, ...]] = ("parquet",)

    files: FileSet
    path: str
    label: str
    is_repeated: bool
    size: int
    columns: ImageColumns

    @classmethod
    def of_files(cls, files: FileSet) -> Iterator["ParquetFile"]:
        """One part per file. Raises UsageError if a file is damaged or if it is unclear which column has the images."""
        return (cls._of(files, file) for file in files.files() if file.extension in cls.extensions)

    @classmethod
    def _of(cls, files: FileSet, file: ListedFile) -> "ParquetFile":
        with _open(files, file.path) as parquet:
            columns = find_columns(parquet.schema_arrow, file.path)
        name = name_of(file.path)
        label, is_repeated = file.folder.labels(cls.extensions)[name]
        path = files.relative(file.path).removesuffix(name) + label
        return cls(files, file.path, path, is_repeated, file.size, columns)

    def with_all_images(self) -> "ParquetFile":
        """The file with all images of a list; of several columns of images, one is used in any case."""
        return replace(self, columns=self.columns._replace(all_images=True))

    def identity(self) -> object:
        """The file's URL and size."""
        return self.files.url(self.path), self.size

    def path_in_source(self) -> str:
        """The file's label."""
        return printable(self.label)

    def id_prefix(self) -> str | None:
        """The file's label and a slash; None if the ids are in a column."""
        return f"{self.path_in_source()}/" if self.columns.image_id is None else None

    def shard_name(self, number: int) -> str:
        """The file's label and the number."""
        return safe_shard_name(self.path_in_source(), number, is_repeated=self.is_repeated)

    def index(self) -> Iterator[ImageReference | Unused]:
        """The rows in order, and before each row group the number of its images that are not used.

        Raises UsageError for an id that is null.
        """
        with _open(self.files, self.path) as parquet:
            ids = self._ids(parquet)
            row = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                if more := self.columns.unused_images(group):
                    name = f"{self.path_in_source()}, rows {row} to {row + group.num_rows - 1}"
                    yield Unused(name, "second_image", more)
                for _ in range(group.num_rows):
                    yield ImageReference(next(ids), places=(row,))
                    row += 1

    def _ids(self, parquet: pq.ParquetFile) -> Iterator[str]:
        column = self.columns.image_id
        if column is None:
            prefix = self.id_prefix()
            yield from (f"{prefix}{row}" for row in range(parquet.metadata.num_rows))
            return
        batches = parquet.iter_batches(columns=[column])
        ids = (i for batch in batches for i in python_values(batch.column(0), lossless=True))
        for row, image_id in enumerate(ids):
            if image_id is None:
                raise UsageError(f"{self.path}: {column} is null in row {row}; every image needs an id")
            is_binary = isinstance(image_id, bytes)
            yield printable(image_id.decode("utf-8", "surrogateescape")) if is_binary else str(image_id)

    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Reads the rows, a few at a time; continues where an earlier call has ended, if there was one."""
        if not references:
            return
        start, stop = references[0].places[0], references[-1].places[0] + 1
        reader = _READERS.take(self)
        if reader is None or not reader.leads_to(start):
            if reader is not None:
                reader.close()
            reader = _RowReader(self, start)
        try:
            for reference, row in zip(references, reader.rows(start), strict=False):
                yield self._image(reference.image_id, row)
        except BaseException:
            reader.close()
            raise
        if reader.position == stop and not reader.is_at_end():
            _READERS.keep(self, reader)
        else:
            reader.close()

    def _image(self, image_id: str, row: dict[str, Any]) -> SourceImage:
        cells = _cells(row[self.columns.image], self.columns.all_images)
        (data, path, missing), *more = (self._stored(cell) for cell in cells)
        url, caption = (text_of(row.get(name or "")) for name in (self.columns.url, self.columns.caption))
        return SourceImage(image_id, data, path, url, caption, missing=missing, more=tuple(more))

    def _stored(self, cell: Any) -> StoredImage:
        data, path = _image_of(cell)
        missing = None
        if not data and path:
            data, missing = self._beside(path)
        return StoredImage(data, name_of(path) if path else None, missing)

    def _beside(self, path: str) -> tuple[bytes, str | None]:
        """The bytes of a file that a row names, relative to the Parquet file's folder; or why there are none."""
        root = self.files.root
        folder = self.path.rpartition("/")[0]
        target = posixpath.normpath(path if path.startswith("/") else f"{folder}/{path}")
        if "://" in path or "\\" in path or "\0" in path or not target.startswith(f"{root}/"):
            return b"", f"no bytes, only the path {path!r}, which is not in {root}"
        if self.files.is_linked_out(target):
            return b"", f"no bytes, only the path {path!r}, which a link leads out of {root}"
        try:
            with self.files.open(target) as file:
                return file.read(), None
        except (UsageError, OSError):
            return b"", f"no bytes, only the path {path!r}, where no file can be read"


class _RowReader:
    """Reads rows of a file from `start` on, and continues to the end of the file."""

    def __init__(self, part: ParquetFile, start: int) -> None:
        self.position = 0
        """The next row."""
        self._groups = list[int]()
        """The first row of each row group, and the end of the last."""
        self._rows = self._read(part, start)

    def leads_to(self, row: int) -> bool:
        """Whether it comes to a row sooner than a new reader, which begins with the row's group."""
        begin = max((group for group in self._groups if group <= row), default=0)
        return begin <= self.position <= row

    def rows(self, start: int) -> Iterator[dict[str, Any]]:
        """The rows from `start` on; any number of them may be taken."""
        for row in self._rows:
            self.position += 1
            if self.position > start:
                yield row

    def is_at_end(self) -> bool:
        """Whether there are no more rows."""
        return self.position >= self._groups[-1]

    def close(self) -> None:
        """Closes the file."""
        self._rows.close()

    def _read(self, part: ParquetFile, start: int) -> Generator[dict[str, Any]]:
        with _open(part.files, part.path) as parquet:
            end, first = 0, 0
            self._groups = [0]
            for number in range(parquet.num_row_groups):
                end += parquet.metadata.row_group(number).num_rows
                if end <= start:
                    first = number + 1
                self._groups.append(end)
            self.position = self._groups[first]
            skip = start - self.position
            groups = list(range(first, parquet.num_row_groups))
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=part.columns.to_read()):
                taken = batch.slice(min(skip, batch.num_rows))
                self.position += batch.num_rows - taken.num_rows
                skip -= batch.num_rows - taken.num_rows
                yield from _row_dicts(taken)


@contextmanager
def _open(files: FileSet, path: str) -> Generator[pq.ParquetFile]:
    with files.open(path) as file:
        try:
            yield open_parquet(file)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            # Arrow's errors about the content have no errno.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UsageError(f"{path} is damaged or is not Parquet ({error}): download it again") from error


def _row_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = [python_values(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _cells(cell: Any, all_images: bool) -> list[Any]:
    """The images of a row: at least one, which is None for a row without an image."""
    if not isinstance(cell, list):
        return [cell]
    return ([each for each in cell if any(_image_of(each))] if all_images else cell[:1]) or [None]


def _image_of(cell: Any) -> tuple[bytes, str | None]:
    """The bytes and the path of an image; empty bytes and None if there is none."""
    if isinstance(cell, dict):
        return cell["bytes"] or b"", cell.get("path") or None
    return cell or b"", None
