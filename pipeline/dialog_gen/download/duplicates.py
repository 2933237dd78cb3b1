"""Which rows of a URL list repeat an earlier URL.

URLs are compared by 64-bit hashes, 8 bytes a row in memory and 24 while they are sorted: of 12 million rows, two
different URLs share a hash with a probability of 4 in a million.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dialog_gen.core.parquet import open_parquet


def write_duplicates(urls: Path, path: Path) -> None:
    """Writes the numbers of the rows in the Parquet files of `urls` whose URL stands in an earlier row (int64, sorted).

    Rows are numbered across the files in order of name. Rows without a URL repeat nothing.
    """
    hashes = np.fromiter(_hashes(urls), dtype=np.uint64)
    rows = np.argsort(hashes, kind="stable")
    ordered = hashes[rows]
    repeated = rows[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]
    np.save(path, np.sort(repeated))


def duplicates_between(path: Path, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The numbers from `start` to `stop` - 1 that `write_duplicates` wrote; reads little else."""
    repeated = np.load(path, mmap_mode="r")
    first, last = np.searchsorted(repeated, (start, stop))
    return np.array(repeated[first:last])


def _hashes(urls: Path) -> Iterator[int]:
    """A hash a row; 0 where there is no URL."""
    for path in sorted(urls.glob("*.parquet")):
        with open_parquet(path) as file:
            for batch in file.iter_batches(columns=["url"]):
                for url in batch["url"].to_pylist():
                    yield int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest()) if url else 0
