"""Runs img2dataset in a session of its own, watches it, and trusts only the shards that it finished.

A shard is finished when its `_stats.json` accounts for every row. img2dataset writes tars in place, so a shard without
that is redone. All processes of img2dataset can be ended together, and end with this one, however that ends.
"""

import errno
import fcntl
import importlib.util
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from dialog_gen.core.errors import FailedCheckError, MissingExtraError, UsageError
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.download.folder import read_json
from dialog_gen.download.img2dataset.job import Job, OutcomePipe, write_duplicates
from dialog_gen.download.img2dataset.resize import MAX_PIXELS
from dialog_gen.download.manifests import DownloadOptions
from dialog_gen.download.outcomes import Outcome

LOG_NAME: Final = "img2dataset.log"

_RESTARTS: Final = 3
_POLL_S: Final = 0.1
_ORPHANS_END_S: Final = 30
_LOG_EVERY_S: Final = 60

_log = logging.getLogger(__name__)


def require_img2dataset() -> None:
    """Raises MissingExtraError where img2dataset is not installed."""
    if importlib.util.find_spec("img2dataset") is None:
        raise MissingExtraError("downloading images", "download")


def download_list(
    work: Path, options: DownloadOptions, description: str, on_progress: OnProgress = ignore_progress
) -> None:
    """Downloads the list in `work`/urls to `work`/images, as far as that is not done.

    Raises FailedCheckError as `run_img2dataset` does.
    """
    duplicates = work / "duplicates.npy"
    write_duplicates(work / "urls", duplicates)
    job = Job(urls=str(work / "urls"), images=str(work / "images"), duplicates=str(duplicates), options=options)
    run_img2dataset(job, work / LOG_NAME, description, on_progress)


def run_img2dataset(job: Job, log: Path, description: str, on_progress: OnProgress = ignore_progress) -> None:
    """Downloads what is missing of a job. `description` names its progress; img2dataset's prints go to `log`.

    Raises FailedCheckError where shards are left, with the reason: finished shards are kept, and the same call
    continues from there.
    """
    images = Path(job.images)
    rows, shards = _size(job)
    _wait_for_orphans(log)
    for start in range(_RESTARTS + 1):
        done = finished_shards(images)
        for path in images.glob("*_stats.json"):
            if path.name.removesuffix("_stats.json") not in done:
                path.unlink()  # img2dataset takes a shard that has this file as done
        if len(done) == shards:
            return
        if start:
            _log.warning("no URL was done for %g s: starting img2dataset anew (%s)", job.options.patience_s, log)
        found = sum((outcomes_of(stats) for stats in done.values()), Counter[Outcome]())
        exit_code = _run(job, log, _Meter(description, rows, found, on_progress))
        _wait_for_orphans(log)
        if exit_code is not None:
            break
    else:
        raise FailedCheckError(
            f"img2dataset stood still for {job.options.patience_s:g} s, {_RESTARTS + 1} times over: see its log {log}; "
            "run the same command again to go on"
        )
    if left := shards - len(finished_shards(images)):
        raise FailedCheckError(
            f"{left} of {shards} shards were not finished: img2dataset ended with {exit_code} ({_last_line(log)}), "
            f"its log is {log}; run the same command again to go on"
        )


def finished_shards(images: Path) -> dict[str, dict[str, Any]]:
    """Name -> statistics of the finished shards, in order."""
    found = {path.name.removesuffix("_stats.json"): read_json(path) for path in sorted(images.glob("*_stats.json"))}
    return {
        name: stats
        for name, stats in found.items()
        if stats and stats.get("count") == outcomes_of(stats).total() and (images / f"{name}.tar").exists()
    }


def outcomes_of(stats: dict[str, Any]) -> Counter[Outcome]:
    """The outcomes of a shard's URLs, from its statistics."""
    return Counter(stats.get("status_dict"))


def _size(job: Job) -> tuple[int, int]:
    """Rows and shards of a list."""
    rows = [pq.read_metadata(path).num_rows for path in sorted(Path(job.urls).glob("*.parquet"))]
    size = job.options.shard_size
    if any(count % size for count in rows[:-1]):
        raise ValueError(f"{job.urls}: each file but the last must hold a multiple of {size} rows, found {rows}")
    return sum(rows), math.ceil(sum(rows) / size)


def _run(job: Job, log: Path, meter: "_Meter") -> int | None:
    """Runs img2dataset once. Returns its exit code, or None if it stood still and was ended."""
    script = "from dialog_gen.download.img2dataset.worker import main; main()"
    command = [sys.executable, "-P", "-c", script, job.to_json()]
    with (
        OutcomePipe() as pipe,
        log.open("ab") as log_file,
        subprocess.Popen(  # noqa: S603 (its words are ours)
            command,
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            env=_environment() | pipe.environment,
            start_new_session=True,
        ) as process,
    ):
        # Every process inherits this file, and with it the lock: it is free when the last process is gone.
        fcntl.flock(log_file, fcntl.LOCK_EX)
        moved = time.monotonic()
        try:
            while process.poll() is None:
                if outcomes := pipe.read():
                    moved = time.monotonic()
                elif time.monotonic() - moved > job.options.patience_s:
                    return None
                meter.add(outcomes)
                if pipe.disk_full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job.images))
                time.sleep(_POLL_S)
            meter.add(pipe.read())
        finally:
            # Also after a normal end: img2dataset's logger outlives a crash.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


class _Meter:
    """Counts the URLs that are done; where nobody follows the progress, a line a minute in the log tells it."""

    def __init__(self, description: str, rows: int, found: Counter[Outcome], on_progress: OnProgress) -> None:
        """`found`: what earlier runs did, which does not count as speed."""
        self._description, self._rows, self._on_progress = description, rows, on_progress
        self._outcomes, self._found = found, found.total()
        self._began = self._logged = time.monotonic()
        self.add(Counter())

    def add(self, outcomes: Counter[Outcome]) -> None:
        """More URLs are done."""
        self._outcomes += outcomes
        done = self._outcomes.total()
        fetched = done - self._outcomes["duplicate_url"]
        stored = f"{self._outcomes['success'] / max(fetched, 1):.0%} stored"
        self._on_progress(self._description, done, self._rows, "images", stored)
        now = time.monotonic()
        if self._on_progress is ignore_progress and now - self._logged > _LOG_EVERY_S:
            self._logged = now
            speed = (done - self._found) / max(now - self._began, 1e-3)
            _log.info("%s: %d of %d URLs, %.0f images/s, %s", self._description, done, self._rows, speed, stored)


def _environment() -> dict[str, str]:
    return {
        # The system's resolver has no deadline; its own limits come to half a minute for a dead name server.
        "RES_OPTIONS": "timeout:3 attempts:2",
        **os.environ,
        # A second bound, in the decoder itself.
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
        # A dependency of img2dataset would look for updates of itself.
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


def _wait_for_orphans(log: Path) -> None:
    """Waits until no process that writes to `log` is left: killed ones need a moment.

    Raises UsageError after half a minute.
    """
    deadline = time.monotonic() + _ORPHANS_END_S
    with log.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"processes of an earlier download still write to {log.parent}: end them"
                    ) from None
                time.sleep(_POLL_S)
            else:
                return


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it said nothing"
