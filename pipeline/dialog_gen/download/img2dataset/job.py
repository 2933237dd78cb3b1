"""Data that the supervisor shares with img2dataset's processes: the job, the rows that repeat a URL, the outcome pipe.

Repeated rows: URLs are compared by 64-bit hashes, which take 8 bytes per row in memory, and 24 while they are sorted.
In a list of 12 million rows, the probability that two different URLs have the same hash is 4 in a million.

Outcome pipe: for each URL that is done, worker processes send one byte through a named pipe. It drives the progress
display and a watchdog, where a lost byte does no harm. The final counts come from the statistics of each shard.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dialog_gen.core.parquet import open_parquet
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.manifests import DownloadOptions
from dialog_gen.download.outcomes import OUTCOMES, Outcome

_PIPE_VARIABLE: Final = "DIALOG_GEN_OUTCOME_PIPE"
_DISK_FULL: Final = 255
_READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadJob:
    """One URL list to download into one folder of tars."""

    urls: str
    """Folder of Parquet files with the columns url and caption; each but the last has a multiple of the shard size."""
    images: str
    duplicates: str
    """File that `write_duplicates` wrote: the rows whose URL occurs in an earlier row."""
    options: DownloadOptions

    def to_json(self) -> str:
        """The job as text, for the command line of the process that runs img2dataset."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DownloadJob":
        """The job of a text that `to_json` returned."""
        fields: dict[str, Any] = json.loads(text)
        options = fields.pop("options")
        policy = FetchPolicy(**options.pop("policy"))
        return cls(**fields, options=DownloadOptions(policy=policy, **options))


def write_duplicates(urls: Path, path: Path) -> None:
    """Writes to `path` the sorted numbers (int64) of the rows of `urls`/*.parquet whose URL occurs in an earlier row.

    Rows are numbered across the files, which are sorted by name. Rows without a URL are not duplicates.
    """
    hashes = np.fromiter(_hashes(urls), dtype=np.uint64)
    rows = np.argsort(hashes, kind="stable")
    ordered = hashes[rows]
    repeated = rows[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)]
    np.save(path, np.sort(repeated))


def duplicates_between(path: Path, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The numbers from `start` to `stop` - 1 in the file that `write_duplicates` wrote; reads little of the rest."""
    repeated = np.load(path, mmap_mode="r")
    first, last = np.searchsorted(repeated, (start, stop))
    return np.array(repeated[first:last])


def _hashes(urls: Path) -> Iterator[int]:
    """One hash per row; 0 for a row without a URL."""
    for path in sorted(urls.glob("*.parquet")):
        with open_parquet(path) as file:
            for batch in file.iter_batches(columns=["url"]):
                for url in batch["url"].to_pylist():
                    yield int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest()) if url else 0


def send_outcome(outcome: Outcome) -> None:
    """Tells the supervisor that a URL is done."""
    _send(OUTCOMES.index(outcome))


def send_disk_full() -> None:
    """Tells the supervisor that the disk is full."""
    _send(_DISK_FULL)


class OutcomePipe:
    """The supervisor's end of the outcome pipe: a context manager that creates the pipe in a temporary folder."""

    def __enter__(self) -> "OutcomePipe":
        self._folder = tempfile.TemporaryDirectory(prefix="dialog-gen-")
        path = Path(self._folder.name) / "outcomes"
        os.mkfifo(path, 0o600)
        # Opened for reading and writing: a pipe without a writer would look closed.
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.environment = {_PIPE_VARIABLE: str(path)}
        self.disk_full = False
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)
        self._folder.cleanup()

    def read(self) -> Counter[Outcome]:
        """Counts of the outcomes sent since the last call; also updates `disk_full`."""
        try:
            codes = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            codes = b""
        self.disk_full |= _DISK_FULL in codes
        return Counter(OUTCOMES[code] for code in codes if code != _DISK_FULL)


@cache
def _pipe() -> int | None:
    try:
        return os.open(os.environ[_PIPE_VARIABLE], os.O_WRONLY | os.O_NONBLOCK)
    except (KeyError, OSError):
        return None


def _send(code: int) -> None:
    pipe = _pipe()
    if pipe is None:
        return
    try:
        os.write(pipe, bytes([code]))
    except OSError:
        return  # the pipe is full or the supervisor has ended: downloading can continue
