"""How worker processes tell the supervisor what became of each URL: one byte each, through a named pipe.

For a progress bar and a watchdog, which may miss a byte; what counts in the end are the statistics of each shard.
"""

import os
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Final

from dialog_gen.download.outcomes import OUTCOMES, Outcome

_VARIABLE: Final = "DIALOG_GEN_DOWNLOAD_REPORTS"
_DISK_FULL: Final = 255
_READ_BYTES: Final = 1 << 16


def report(outcome: Outcome) -> None:
    """Tells that a URL is done."""
    _send(OUTCOMES.index(outcome))


def report_disk_full() -> None:
    """Tells that what was downloaded cannot be stored."""
    _send(_DISK_FULL)


class Reports:
    """The supervisor's end; the pipe lives in the system's temporary folder while this is entered."""

    def __enter__(self) -> "Reports":
        self._folder = tempfile.TemporaryDirectory(prefix="dialog-gen-")
        path = Path(self._folder.name) / "reports"
        os.mkfifo(path, 0o600)
        # Open for both: with no writer yet, or between two, a pipe only for reading looks closed.
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.environment = {_VARIABLE: str(path)}
        self.disk_full = False
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)
        self._folder.cleanup()

    def read(self) -> Counter[Outcome]:
        """What became of the URLs that were reported since the last call; sets `disk_full`."""
        try:
            codes = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            codes = b""
        self.disk_full |= _DISK_FULL in codes
        return Counter(OUTCOMES[code] for code in codes if code != _DISK_FULL)


@cache
def _pipe() -> int | None:
    try:
        return os.open(os.environ[_VARIABLE], os.O_WRONLY | os.O_NONBLOCK)
    except (KeyError, OSError):
        return None


def _send(code: int) -> None:
    pipe = _pipe()
    if pipe is None:
        return
    try:
        os.write(pipe, bytes([code]))
    except OSError:
        return  # full, or nobody listens any more: no reason to stop downloading
