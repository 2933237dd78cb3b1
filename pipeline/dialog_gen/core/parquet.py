"""Opens Parquet files that may contain images."""

from typing import Any

import pyarrow.parquet as pq


def open_parquet(source: Any) -> pq.ParquetFile:
    """Opens a Parquet file for reading; `source` is a path or an open file.

    Raises pyarrow.ArrowException or OSError if the file is damaged or is not Parquet; so do reads of its pages, if they
    have checksums.
    """
    # Without a buffer, pyarrow reads the whole column of images of a row group at once; with `pre_buffer` it does the
    # same. That can be gigabytes, perhaps from another machine.
    return pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
