"""Code that runs in img2dataset's processes: img2dataset with a safe replacement of its fetching.

img2dataset reads the list, resizes, writes tars and counts. Its fetching is replaced, since it follows any scheme to
any address, has no limit of size and no deadline. Here every URL is requested through `dialog_gen.download.http`, and
the header of an image is checked before the image is decoded. The error message of a URL without an image is always a
class of `dialog_gen.download.outcomes`, so the statistics of shards contain no other messages.
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
from dialog_gen.download.img2dataset.job import DownloadJob, duplicates_between, send_disk_full, send_outcome
from dialog_gen.download.img2dataset.resize import RESIZE, PlainResizer, check_header
from dialog_gen.download.outcomes import FetchError, Outcome

# webdataset imports torch if it is installed, but does not need it here. Without torch, a process takes half the time
# to start and half the memory.
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
    job = DownloadJob.from_json(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The package has a function of the same name, which hides this module.
    engine: Any = importlib.import_module("img2dataset.main")
    _check_version(engine)
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
        # EXIF data contains the place and device of a photo; it is left out for privacy.
        extract_exif=False,
        incremental_mode="incremental",
        enable_wandb=False,
        user_agent_token=_ROBOTS_TOKEN,
        **RESIZE,
    )


class ImageDownloader(Downloader):
    """img2dataset's Downloader of one shard at a time, with this module's fetching, resizing and writing."""

    def __init__(self, job: DownloadJob, **settings: Any) -> None:
        settings["resizer"] = _Resizer(PlainResizer(settings["resizer"]))
        settings["sample_writer_class"] = _Writer
        super().__init__(**settings)
        self._job = job

    def download_shard(self, row: tuple[int, str]) -> None:
        """Downloads shard number `row[0]`. Raises RuntimeError if img2dataset did not use this module's fetching."""
        start, size = row[0] * self._job.options.shard_size, self._job.options.shard_size
        repeated = duplicates_between(Path(self._job.duplicates), start, start + size) - start
        fetch = _Fetch(self._job.options.policy, frozenset(repeated.tolist()))
        img2dataset.downloader.download_image_with_retry = fetch
        # The original closes stdout and stderr of all threads while one image is resized, so messages would be lost.
        img2dataset.resizer.SuppressStdoutStderr = nullcontext
        with _noting_full_disk():
            super().download_shard(row)
        if not fetch.was_used:
            raise RuntimeError("this version of img2dataset does not fetch through download_image_with_retry")


class _Fetch:
    """Replaces `img2dataset.downloader.download_image_with_retry` for one shard."""

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
            if not url:
                raise FetchError("no_url", "the row of the list has none")
            with open_url(url, self._policy) as response:
                if is_disallowed(response.headers, user_agent_token, disallowed_header_directives):
                    raise FetchError("opted_out", "X-Robots-Tag")
                return response.read()

        try:
            if key in self._duplicates:
                raise FetchError("duplicate_url", "occurs earlier in the list")
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
    """Calls the resizer and sends the outcome of an image: success, or decode_error for any error."""

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        *result, error = self._resizer(*args)
        outcome: Outcome = "success" if error is None else "decode_error"
        send_outcome(outcome)
        return (*result, None if error is None else outcome)


class _Writer(WebDatasetSampleWriter):
    # img2dataset prints errors of `write` and continues, so a full disk must be reported here.
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
    """Replaces img2dataset's logger process, since the supervisor shows the progress."""

    def __init__(self, *_: Any) -> None:
        self.done_shards: set[int] = set()

    def start(self) -> None:
        pass

    def terminate(self) -> None:
        pass

    def join(self) -> None:
        pass


def _check_version(engine: Any) -> None:
    found = list(inspect.signature(img2dataset.downloader.download_image_with_retry).parameters)
    if found != _FETCH_PARAMETERS or engine.Downloader is not Downloader:
        sys.exit(f"this version of img2dataset is not known: its download_image_with_retry takes {', '.join(found)}")


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end of the pipe closes
    os.killpg(0, signal.SIGKILL)
