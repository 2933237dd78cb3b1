"""Parquet files with a column of images, such as those that `datasets` or dialog-gen itself write."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.errors import UsageError
from dialog_gen.core.parquet import open_parquet
from dialog_gen.sources.base import SOURCES, ImageReference, SourceImage, SourcePart, safe_shard_name
from dialog_gen.sources.listing import FileSet, ListedFile, name_of, printable, stem

IMAGE_COLUMNS: Final = ("image", "images", "jpg", "jpeg", "png", "webp", "bytes")
ID_COLUMNS: Final = ("image_id", "key", "id", "__key__")
CAPTION_COLUMNS: Final = ("caption", "text", "txt")

_ROWS_AT_ONCE: Final = 16  # keeps a batch of images small


@SOURCES.register("parquet")
@dataclass(frozen=True, slots=True)
class ParquetFile(SourcePart):
    """One file. The id of an image is in one of `ID_COLUMNS`; otherwise it is "path without extension/row number"."""

    accepted: ClassVar[str] = "*.parquet"
    extensions: ClassVar[tuple[str, ...]] = ("parquet",)

    files: FileSet
    path: str
    size: int
    image: str
    image_id: str | None
    url: str | None
    caption: str | None

    @classmethod
    def of_files(cls, files: FileSet) -> Iterator["ParquetFile"]:
        """One part per file. Raises UsageError if a file is damaged or if it is unclear which column has the images."""
        return (cls._of(files, file) for file in files.files() if file.extension in cls.extensions)

    @classmethod
    def _of(cls, files: FileSet, file: ListedFile) -> "ParquetFile":
        with _open(files, file.path) as parquet:
            schema = parquet.schema_arrow
        images = [column.name for column in schema if _holds_image(column.type)]
        image = next((name for name in IMAGE_COLUMNS if name in images), images[0] if len(images) == 1 else None)
        if image is None:
            columns = ", ".join(f"{column.name}: {column.type}" for column in schema)
            raise UsageError(
                f"{file.path}: which column has the images? Expected bytes or struct{{bytes, path}}, the only such "
                f"column or one named {', '.join(IMAGE_COLUMNS)}; got {columns}"
            )

        def first(*names: str) -> str | None:
            return next((name for name in names if name in schema.names and name != image), None)

        return cls(files, file.path, file.size, image, first(*ID_COLUMNS), first("url"), first(*CAPTION_COLUMNS))

    def identity(self) -> object:
        """The file's URL and size."""
        return self.files.url(self.path), self.size

    def shard_name(self, number: int) -> str:
        """The file's path and the number."""
        return safe_shard_name(self.files.relative(self.path), number)

    def index(self) -> Iterator[ImageReference]:
        """The rows in order. Raises UsageError for an id that is null."""
        with _open(self.files, self.path) as parquet:
            if self.image_id is None:
                prefix = printable(stem(self.files.relative(self.path)))
                rows = range(parquet.metadata.num_rows)
                yield from (ImageReference(f"{prefix}/{row}", places=(row,)) for row in rows)
                return
            ids = (i for batch in parquet.iter_batches(columns=[self.image_id]) for i in batch.column(0).to_pylist())
            for row, image_id in enumerate(ids):
                if image_id is None:
                    raise UsageError(f"{self.path}: {self.image_id} is null in row {row}; every image needs an id")
                yield ImageReference(str(image_id), places=(row,))

    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Reads the row groups that contain the rows, a few rows at a time."""
        if not references:
            return
        columns = [name for name in (self.image, self.url, self.caption) if name]
        start, stop = references[0].places[0], references[-1].places[0] + 1
        with _open(self.files, self.path) as parquet:
            groups, skip, begin = list[int](), 0, 0
            for group in range(parquet.num_row_groups):
                end = begin + parquet.metadata.row_group(group).num_rows
                if begin < stop and end > start:
                    skip = skip if groups else start - begin
                    groups.append(group)
                begin = end
            batches = parquet.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=columns)
            for reference, row in zip(references, _rows(batches, skip), strict=False):
                data, path = _image_of(row[self.image])
                texts = (row.get(name or "") for name in (self.url, self.caption))
                yield SourceImage(reference.image_id, data, path, *(t if isinstance(t, str) else None for t in texts))


@contextmanager
def _open(files: FileSet, path: str) -> Generator[pq.ParquetFile]:
    with files.open(path) as file:
        try:
            yield open_parquet(file)
        except (pa.ArrowException, OSError) as error:
            # Arrow's errors about the content have no errno.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UsageError(f"{path} is damaged or is not Parquet ({error}): download it again") from error


def _rows(batches: Iterable[pa.RecordBatch], skip: int) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.slice(min(skip, batch.num_rows)).to_pylist()
        skip = max(0, skip - batch.num_rows)


def _holds_image(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _image_of(cell: Any) -> tuple[bytes, str | None]:
    """The bytes and the file name of an image; empty bytes for a row without an image."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        path = cell.get("path")
        return cell["bytes"] or b"", name_of(path) if path else None
    return cell or b"", None
