"""Parquet files with images and a column of dialogues, in a form that `datasets` and the Hub's viewer show."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.dataset.record import IMAGE_TYPE, hub_schema
from dialog_gen.dataset.writer import ROWS_PER_GROUP
from dialog_gen.publish.formats.base import Sample, SampleWriter

_FILE_BYTES = 500 * 10**6
# The Hub's viewer does not show row groups over 286 MiB.
_GROUP_BYTES = 200 << 20


class DialogueParquetWriter(SampleWriter):
    """OUT/*.parquet of about 500 MB each, with the columns `images` and `column`."""

    column: ClassVar[str]
    """Name of the column with the dialogue."""
    turn_type: ClassVar[pa.DataType]
    """Arrow type of one element of that column."""

    def __init__(self, out: Path) -> None:
        self._out = out
        fields = [pa.field("images", pa.list_(IMAGE_TYPE)), pa.field(self.column, pa.list_(self.turn_type))]
        self._schema = hub_schema(fields)
        self._rows: list[dict[str, Any]] = []
        self._rows_bytes, self._file_bytes, self._files = 0, 0, 0
        self._writer: pq.ParquetWriter | None = None

    @abstractmethod
    def dialogue(self, sample: Sample) -> list[dict[str, str]]:
        """The value of a sample in the column with the dialogue."""

    def add(self, sample: Sample) -> None:
        """Collects samples until a row group is full, then writes it."""
        image = {"bytes": sample.image, "path": f"{sample.name}.{sample.extension}"}
        self._rows.append({"images": [image], self.column: self.dialogue(sample)})
        self._rows_bytes += len(sample.image)
        if len(self._rows) == ROWS_PER_GROUP or self._rows_bytes > _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Writes the last row group."""
        if self._rows:
            self._flush()
        if self._writer:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer and self._file_bytes + self._rows_bytes > _FILE_BYTES:
            self._writer.close()
            self._writer, self._file_bytes = None, 0
        if self._writer is None:
            path = self._out / f"{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(
                path, self._schema, compression="zstd", use_dictionary=False, write_page_index=True
            )
            self._files += 1
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._file_bytes += self._rows_bytes
        self._rows, self._rows_bytes = [], 0
