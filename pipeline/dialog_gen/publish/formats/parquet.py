"""Parquet files with images and a column of dialogues, in a form that `datasets` and the Hub's viewer show."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.dataset.record import IMAGE_TYPE, STATEMENTS, hub_schema
from dialog_gen.dataset.shard_writer import BYTES_PER_GROUP, ROWS_PER_GROUP
from dialog_gen.publish.formats.base import Sample, SampleWriter

_FILE_BYTES = 500 * 10**6


class DialogueParquetWriter(SampleWriter):
    """OUT/*.parquet of about 500 MB each, with the columns `images` and `column`."""

    column: ClassVar[str]
    """Name of the column with the dialogue."""
    turn_type: ClassVar[pa.DataType]
    """Arrow type of one element of that column."""
    with_statements: ClassVar[bool] = False
    """Whether there is a further column `statements` if the dataset has one."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._schema: pa.Schema | None = None
        self._rows: list[dict[str, Any]] = []
        self._rows_bytes, self._file_bytes, self._files = 0, 0, 0
        self._writer: pq.ParquetWriter | None = None

    @abstractmethod
    def dialogue(self, sample: Sample) -> list[dict[str, str]]:
        """The value of a sample in the column with the dialogue."""

    def add(self, sample: Sample) -> None:
        """Collects samples until a row group is full, then writes it."""
        images = [{"bytes": data, "path": name} for name, data in sample.files]
        has_statements = self.with_statements and sample.statements is not None
        self._schema = self._schema or self._columns(has_statements)
        statements = {STATEMENTS: sample.statements} if has_statements else {}
        self._rows.append({"images": images, self.column: self.dialogue(sample), **statements})
        self._rows_bytes += sum(map(len, sample.images))
        if len(self._rows) == ROWS_PER_GROUP or self._rows_bytes >= BYTES_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Writes the last row group."""
        if self._rows:
            self._flush()
        if self._writer:
            self._writer.close()

    def _columns(self, has_statements: bool) -> pa.Schema:
        statements = [pa.field(STATEMENTS, pa.list_(pa.string()))] if has_statements else []
        fields = [pa.field("images", pa.list_(IMAGE_TYPE)), pa.field(self.column, pa.list_(self.turn_type))]
        return hub_schema([*fields, *statements])

    def _flush(self) -> None:
        if self._writer and self._file_bytes + self._rows_bytes > _FILE_BYTES:
            self._writer.close()
            self._writer, self._file_bytes = None, 0
        if self._writer is None:
            path = self._out / f"{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(
                path,
                self._schema,
                compression="zstd",
                use_dictionary=False,
                write_page_index=True,
                use_content_defined_chunking=True,
            )
            self._files += 1
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._file_bytes += self._rows_bytes
        self._rows, self._rows_bytes = [], 0
