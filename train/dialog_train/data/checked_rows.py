"""Arrow files whose rows carry a checksum: a damaged row is found when it is read.

The column `crc32` is the CRC-32 of all other values of its row.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dialog_gen.core.errors import UsageError
from dialog_train.data.columns import Elements, checksums, columns_of, piece_numbers

CHECKSUM = "crc32"


class RowsWriter:
    """Writes record batches and their checksums; `rows_writer` makes it."""

    def __init__(self, writer: Any, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Appends the rows of a batch."""
        # A reader gets the columns as they are serialized: without the offset that a slice has.
        message = batch.serialize()
        plain: Any = pa.ipc.read_record_batch(message, batch.schema)
        memory: npt.NDArray[np.uint8] = np.frombuffer(message, np.uint8)
        numbers = np.array([piece_numbers(plain, memory)], np.int64)
        rows = np.arange(len(plain))
        crcs = checksums(columns_of(plain.schema, memory, numbers).values(), Elements(rows * 0, rows, rows + 1))
        self._writer.write_batch(pa.record_batch([*plain.columns, pa.array(crcs)], schema=self._schema))


@contextmanager
def rows_writer(file: Path, schema: pa.Schema, fingerprint: str) -> Generator[RowsWriter]:
    """Creates an Arrow file of rows with `schema`; `fingerprint` identifies what they are made from."""
    full = schema.append(pa.field(CHECKSUM, pa.uint32(), nullable=False)).with_metadata({"fingerprint": fingerprint})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, full) as writer:
        yield RowsWriter(writer, full)


def damaged_rows(file: Path) -> UsageError:
    """The error for a file whose rows are not what was written."""
    return UsageError(f"{file} is missing or damaged: remove it and run again, which makes it anew.")
