"""Runs img2dataset in a session of its own, watches it, and uses only the shards that it finished.

A shard is finished if its `_stats.json` counts every row. img2dataset writes tars in place, so an unfinished shard is
downloaded again. All processes of img2dataset can be ended together, and they always end with this process.
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
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.download.folder import read_json
from dialog_gen.download.img2dataset.job import DownloadJob, OutcomePipe, write_duplicates
from dialog_gen.download.img2dataset.resize import MAX_PIXELS
from dialog_gen.download.manifests import DownloadOptions
from dialog_gen.download.outcomes import OUTCOMES, Outcome

LOG_NAME: Final = "img2dataset.log"

_RESTARTS: Final = 3
_POLL_S: Final = 0.1
_ORPHANS_END_S: Final = 30
_LOG_EVERY_S: Final = 60

_log = logging.getLogger(__name__)


def require_img2dataset() -> None:
    """Raises MissingExtraError if img2dataset is not installed."""
    if importlib.util.find_spec("img2dataset") is None:
        raise MissingExtraError("downloading images", "download")


def download_list(
    work: Path, options: DownloadOptions, description: str, on_progress: OnProgress = ignore_progress
) -> None:
    """Downloads the list in `work`/urls to `work`/images, except for shards that are finished.

    Raises FailedCheckError like `run_img2dataset`.
    """
    duplicates = work / "duplicates.npy"
    write_duplicates(work / "urls", duplicates)
    job = DownloadJob(urls=str(work / "urls"), images=str(work / "images"), duplicates=str(duplicates), options=options)
    run_img2dataset(job, work / LOG_NAME, description, on_progress)


def run_img2dataset(job: DownloadJob, log: Path, description: str, on_progress: OnProgress = ignore_progress) -> None:
    """Downloads the unfinished shards of a job.

    `description` is shown with the progress. The output of img2dataset is appended to `log`.

    Raises FailedCheckError, with the reason, if shards could not be finished. Finished shards are kept, and the same
    call continues from there.
    """
    images = Path(job.images)
    rows, shards = _size(job)
    _wait_for_orphans(log)
    for start in range(_RESTARTS + 1):
        done = finished_shards(images)
        for path in images.glob("*_stats.json"):
            if path.name.removesuffix("_stats.json") not in done:
                path.unlink()  # img2dataset skips a shard that has this file
        if len(done) == shards:
            return
        if start:
            _log.warning("no URL was done for %g s: restarting img2dataset (%s)", job.options.patience_s, log)
        found = sum((outcomes_of(stats) for stats in done.values()), Counter[Outcome]())
        exit_code = _run(job, log, _Meter(description, rows, found, on_progress))
        _wait_for_orphans(log)
        if exit_code is not None:
            break
    else:
        raise FailedCheckError(
            f"img2dataset stood still for {job.options.patience_s:g} s, {_RESTARTS + 1} times over: see its log {log}; "
            "run the same command again to continue"
        )
    if left := shards - len(finished_shards(images)):
        raise FailedCheckError(
            f"{left} of {count_of(shards, 'shard')} were not finished: img2dataset ended with {exit_code} "
            f"({_last_line(log)}), "
            f"its log is {log}; run the same command again to continue"
        )


def finished_shards(images: Path) -> dict[str, dict[str, Any]]:
    """Name -> statistics of each finished shard, sorted by name."""
    found = {path.name.removesuffix("_stats.json"): read_json(path) for path in sorted(images.glob("*_stats.json"))}
    return {
        name: stats for name, stats in found.items() if stats and _add_up(stats) and (images / f"{name}.tar").exists()
    }


def _add_up(stats: dict[str, Any]) -> bool:
    outcomes = outcomes_of(stats)
    return stats.get("count") == outcomes.total() and outcomes.keys() <= set(OUTCOMES)


def outcomes_of(stats: dict[str, Any]) -> Counter[Outcome]:
    """The counts of outcomes in the statistics of a shard."""
    return Counter(stats.get("status_dict"))


def _size(job: DownloadJob) -> tuple[int, int]:
    """The numbers of rows and of shards of a list."""
    rows = [pq.read_metadata(path).num_rows for path in sorted(Path(job.urls).glob("*.parquet"))]
    size = job.options.shard_size
    if any(count % size for count in rows[:-1]):
        raise ValueError(f"{job.urls}: each file but the last must have a multiple of {size} rows, found {rows}")
    return sum(rows), math.ceil(sum(rows) / size)


def _run(job: DownloadJob, log: Path, meter: "_Meter") -> int | None:
    """Runs img2dataset once. Returns its exit code, or None if it made no progress and was ended."""
    script = "from dialog_gen.download.img2dataset.worker import main; main()"
    command = [sys.executable, "-P", "-c", script, job.to_json()]
    with (
        OutcomePipe() as pipe,
        log.open("ab") as log_file,
        subprocess.Popen(  # noqa: S603 (all arguments are our own)
            command,
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            env=_environment() | pipe.environment,
            start_new_session=True,
        ) as process,
    ):
        # Every process inherits this file with its lock, so the lock is released when the last process has ended.
        fcntl.flock(log_file, fcntl.LOCK_EX)
        last_progress = time.monotonic()
        try:
            while process.poll() is None:
                if outcomes := pipe.read():
                    last_progress = time.monotonic()
                elif time.monotonic() - last_progress > job.options.patience_s:
                    return None
                meter.add(outcomes)
                if pipe.disk_full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(job.images))
                time.sleep(_POLL_S)
            meter.add(pipe.read())
        finally:
            # Also after img2dataset has ended: its logger process survives a crash.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


class _Meter:
    """Counts the URLs that are done and reports progress. Without a progress callback, it logs one line per minute."""

    def __init__(self, description: str, rows: int, found: Counter[Outcome], on_progress: OnProgress) -> None:
        """`found` are the outcomes of earlier runs, which are not part of the speed."""
        self._description, self._rows, self._on_progress = description, rows, on_progress
        self._outcomes, self._found = found, found.total()
        self._began = self._logged = time.monotonic()
        self.add(Counter())

    def add(self, outcomes: Counter[Outcome]) -> None:
        """Adds the outcomes of further URLs."""
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
        # The system's resolver has no deadline; with its default limits, a dead name server would take half a minute.
        "RES_OPTIONS": "timeout:3 attempts:2",
        **os.environ,
        # A second limit, in the decoder itself.
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
        # Otherwise a dependency of img2dataset would look for updates over the network.
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


def _wait_for_orphans(log: Path) -> None:
    """Waits until no process writes to `log` any more: killed processes need a moment to end.

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
