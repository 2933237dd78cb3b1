"""What runs in img2dataset's processes: its engine, with another way to fetch an image.

img2dataset reads the list, resizes, writes tars and counts. Its fetching is replaced, since it follows any scheme to
any address, reads without bound and has no deadline. Here every URL goes through `dialog_gen.download.http`, an image's
header is read before anything decodes it, and a URL that gives no image gets one class of
`dialog_gen.download.outcomes` as its error message, so that the shards' statistics are a closed set.
"""

import errno
import functools
import importlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

from dialog_gen.download.http import FetchPolicy, open_url, with_retries
from dialog_gen.download.img2dataset.job import Job, duplicates_between, send_disk_full, send_outcome
from dialog_gen.download.img2dataset.resize import RESIZE, PlainResizer, check_header
from dialog_gen.download.outcomes import FetchError, Outcome

# webdataset imports torch if it can, for nothing that is used here: that is half of a process's start and memory.
_torch = sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]

import img2dataset.downloader  # noqa: E402
import img2dataset.resizer  # noqa: E402
from img2dataset.downloader import Downloader, is_disallowed  # noqa: E402
from img2dataset.writer import WebDatasetSampleWriter  # noqa: E402

if _torch is None:  # pyright: ignore[reportUnnecessaryComparison]
    del sys.modules["torch"]

_ROBOTS_TOKEN = "dialog-gen"  # noqa: S105 (the name by which an X-Robots-Tag may address this program)
_FETCH_PARAMETERS = ["row", "timeout", "retries", "user_agent_token", "disallowed_header_directives"]


def main() -> None:
    """Runs img2dataset on the job given as JSON, until it is done or the parent process is gone."""
    job = Job.from_json(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The package hides this module behind a function of the same name.
    engine: Any = importlib.import_module("img2dataset.main")
    _check_seam(engine)
    engine.Downloader = functools.partial(ImageDownloader, job)
    engine.LoggerProcess = _NoLogger
    engine.download(
        url_list=job.urls,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=job.images,
        output_format="webdataset",
        number_sample_per_shard=job.options.shard_size,
        processes_count=job.options.processes,
        thread_count=job.options.threads,
        compute_hash="sha256",
        # EXIF tells where and with what a photo was taken: left out for privacy.
        extract_exif=False,
        incremental_mode="incremental",
        enable_wandb=False,
        user_agent_token=_ROBOTS_TOKEN,
        **RESIZE,
    )


class ImageDownloader(Downloader):
    """img2dataset's Downloader of one shard at a time, which fetches, resizes and writes in this module's way."""

    def __init__(self, job: Job, **settings: Any) -> None:
        settings["resizer"] = _Resizer(PlainResizer(settings["resizer"]))
        settings["sample_writer_class"] = _Writer
        super().__init__(**settings)
        self._job = job

    def download_shard(self, row: tuple[int, str]) -> None:
        """Downloads shard number `row[0]`. Raises RuntimeError if img2dataset fetched by other means."""
        start, size = row[0] * self._job.options.shard_size, self._job.options.shard_size
        repeated = duplicates_between(Path(self._job.duplicates), start, start + size) - start
        fetch = _Fetch(self._job.options.policy, frozenset(repeated.tolist()))
        img2dataset.downloader.download_image_with_retry = fetch
        # It closes stdout and stderr of all threads while one image is resized: their messages would be lost.
        img2dataset.resizer.SuppressStdoutStderr = nullcontext
        with _noting_full_disk():
            super().download_shard(row)
        if not fetch.was_used:
            raise RuntimeError("this version of img2dataset does not fetch through download_image_with_retry")


class _Fetch:
    """Takes the place of `img2dataset.downloader.download_image_with_retry` for one shard."""

    def __init__(self, policy: FetchPolicy, duplicates: frozenset[int]) -> None:
        self.was_used = False
        self._policy = policy
        self._duplicates = duplicates

    def __call__(
        self,
        row: tuple[int, str | None],
        timeout: float,
        retries: int,
        user_agent_token: str,
        disallowed_header_directives: set[str],
    ) -> tuple[int, BytesIO | None, Outcome | None]:
        self.was_used = True
        key, url = row

        def attempt() -> bytes:
            with open_url(url or "", self._policy) as response:
                if is_disallowed(response.headers, user_agent_token, disallowed_header_directives):
                    raise FetchError("opted_out", "X-Robots-Tag")
                return response.read()

        try:
            if key in self._duplicates:
                raise FetchError("duplicate_url", "stands earlier in the list")
            data = with_retries(self._policy, attempt)
            check_header(data)
        except FetchError as error:
            outcome = error.outcome
        except Exception:  # noqa: BLE001 - one URL must not end a shard of a thousand
            traceback.print_exc()
            outcome = "internal_error"
        else:
            return key, BytesIO(data), None
        send_outcome(outcome)
        return key, None, outcome


class _Resizer:
    """img2dataset's resizer with one class for its errors; its result decides an image's outcome."""

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        *result, error = self._resizer(*args)
        outcome: Outcome = "success" if error is None else "decode_error"
        send_outcome(outcome)
        return (*result, None if error is None else outcome)


class _Writer(WebDatasetSampleWriter):
    # img2dataset prints what `write` raises, and carries on.
    def write(self, img_str: Any, key: Any, caption: Any, meta: Any) -> None:
        with _noting_full_disk():
            super().write(img_str, key, caption, meta)


@contextmanager
def _noting_full_disk() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            send_disk_full()
        raise


class _NoLogger:
    """Replaces img2dataset's process that would print the progress, which the supervisor shows."""

    def __init__(self, *_: Any) -> None:
        self.done_shards: set[int] = set()

    def start(self) -> None:
        pass

    def terminate(self) -> None:
        pass

    def join(self) -> None:
        pass


def _check_seam(engine: Any) -> None:
    found = list(inspect.signature(img2dataset.downloader.download_image_with_retry).parameters)
    if found != _FETCH_PARAMETERS or engine.Downloader is not Downloader:
        sys.exit(f"this version of img2dataset is not known: its download_image_with_retry takes {', '.join(found)}")


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end of the pipe closes
    os.killpg(0, signal.SIGKILL)
