"""Asks again for the URLs that failed. What comes goes to OUT/images/retry-1 and so on: nothing else is changed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.download.job import DownloadOptions
from dialog_gen.download.link_rot import retry_folders
from dialog_gen.download.outcomes import FINAL
from dialog_gen.download.supervisor import download_list, finished_shards

_SHARDS_PER_FILE: Final = 256  # of the list: img2dataset reads a file of it at a time


def fetch_failed(out: Path, options: DownloadOptions) -> bool:
    """Asks again for what failed the last time; returns whether there was anything.

    An interrupted call is gone on with by the next one. Raises FailedCheckError where shards are left.
    """
    folders = [out / "images", *retry_folders(out / "images")]
    for number in range(1, len(folders)):
        shutil.rmtree(_work(out, number), ignore_errors=True)
    work = _work(out, len(folders))
    if not (work / "urls").exists():
        part = work / "urls.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if not _write_failed(folders[-1], part, options.shard_size):
            shutil.rmtree(work)
            return False
        part.replace(work / "urls")
    (work / "images").mkdir(exist_ok=True)
    download_list(work, options, "downloading again")
    (work / "images").replace(out / "images" / f"retry-{len(folders)}")
    shutil.rmtree(work)
    return True


def _work(out: Path, number: int) -> Path:
    return out / f".retry-{number}"


def _write_failed(images: Path, into: Path, shard_size: int) -> int:
    """Writes a list of the URLs that failed and may yet be had; returns how many there are."""
    rows_per_file = _SHARDS_PER_FILE * shard_size
    pending: list[pa.Table] = []
    total = files = 0
    for table in _failed(images):
        pending.append(table)
        total += table.num_rows
        if total - files * rows_per_file >= rows_per_file:
            whole = pa.concat_tables(pending)
            pq.write_table(whole.slice(0, rows_per_file), into / f"{files:05d}.parquet")
            pending = [whole.slice(rows_per_file)]
            files += 1
    if rest := total - files * rows_per_file:
        pq.write_table(pa.concat_tables(pending).slice(0, rest), into / f"{files:05d}.parquet")
    return total


def _failed(images: Path) -> Iterator[pa.Table]:
    for name in finished_shards(images):
        table = pq.read_table(images / f"{name}.parquet").sort_by("key")
        errors = table["error_message"].to_pylist()  # None of a success
        yield table.select(["url", "caption"]).filter(pa.array([bool(e) and e not in FINAL for e in errors]))
