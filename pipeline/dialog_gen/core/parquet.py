"""How Parquet is opened, wherever it may hold images."""

from typing import Any

import pyarrow.parquet as pq


def open_parquet(source: Any) -> pq.ParquetFile:
    """A Parquet file to read from; `source` is a path or an open file.

    Raises pyarrow.ArrowException or OSError where it is damaged or no Parquet.
    """
    # Without a buffer a column of images is read whole, and so it is where columns are fetched before they are asked
    # for (`pre_buffer`): gigabytes of a large row group, or of a file on another machine.
    return pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
