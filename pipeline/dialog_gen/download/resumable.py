"""Single files over HTTP that go on where they stopped, checked against what is promised of them."""

import hashlib
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from http.client import PARTIAL_CONTENT, REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import write_json
from dialog_gen.download.fetch import FetchError, FetchPolicy, open_url, with_retries
from dialog_gen.download.folder import read_json
from dialog_gen.download.manifests import SourceFile

_CHUNK_BYTES: Final = 1 << 16
_MAX_FILE_BYTES: Final = 1 << 38
"""Of a file whose size is not published."""


def fetch_file(file: SourceFile, folder: Path, out: Path, policy: FetchPolicy, bar: Progress | None = None) -> Path:
    """Where a file lies: its own path, `out` if it was got by hand, or else `folder`, into which it is fetched.

    There it has its name when it is complete and checked; a `.part` beside it is gone on with, if the server still has
    the same file.

    Raises UsageError for a file that must be got by hand and is not there, or is not the one promised; FailedCheckError
    where it cannot be fetched, or something else came.
    """
    own = Path(file.path) if file.path else out / file.file_name
    if (file.path or file.by_hand) and own.exists():
        if wrong := _wrong(own, file):
            raise UsageError(f"{own} {wrong}: is it the right file?")
        return own
    if not file.url:
        advice = f" Get it by hand: {file.by_hand}; then put it there and run again." if file.by_hand else ""
        raise UsageError(f"{own} is not there.{advice}")
    complete = folder / file.file_name
    if not complete.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{file.file_name}.part"
        try:
            with nullcontext(bar) if bar else transfer_bar() as shown:
                _fetch(file.url, part, file.size_bytes, policy, shown)
        except FetchError as error:
            advice = (
                f" Or get it by hand: {file.by_hand}; put it into {out} as {file.file_name}." if file.by_hand else ""
            )
            raise FailedCheckError(
                f"{file.url} could not be fetched: {error}. What has come stays: run again to go on.{advice}"
            ) from None
        if wrong := _wrong(part, file):
            remove(part)
            remove(_state_of(part))
            raise FailedCheckError(f"what came from {file.url} {wrong}; it was removed.")
        part.rename(complete)
        remove(_state_of(part))
    return complete


def _fetch(url: str, part: Path, size_bytes: int | None, policy: FetchPolicy, bar: Progress) -> None:
    """Brings `part` to its full size, from where it is, in as many tries as bring any bytes."""
    policy = replace(policy, deadline_s=None, max_bytes=size_bytes or _MAX_FILE_BYTES)
    task = bar.add_task(part.stem, total=size_bytes)
    most = 0
    while True:
        try:
            with_retries(policy, lambda: _go_on(url, part, policy, bar, task))
        except FetchError as error:
            size = part.stat().st_size if part.exists() else 0
            if not error.transient or size <= most:
                raise
            most = size
        else:
            return


def _go_on(url: str, part: Path, policy: FetchPolicy, bar: Progress, task: TaskID) -> None:
    """One request: for what is missing, as long as the server has the same file, or for all of it."""
    state = read_json(_state_of(part)) or {}
    same = state.get("url") == url and state.get("validator") and part.exists()
    begun = part.stat().st_size if same else 0
    if begun and begun == state.get("size_bytes"):
        return
    headers = {"Range": f"bytes={begun}-", "If-Range": state["validator"]} if begun else {}
    try:
        with open_url(url, policy, headers) as response:
            goes_on = begun > 0 and response.status == PARTIAL_CONTENT
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
                raise FetchError(
                    "truncated", "another part came than was asked for", status=REQUESTED_RANGE_NOT_SATISFIABLE
                )
            if not goes_on:
                # First, as its bytes are not of the file that is noted next.
                remove(part)
                begun = 0
            total = None if response.length is None else begun + response.length
            etag = response.headers.get("ETag", "W/")
            # A weak one may stand for other bytes.
            validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
            write_json(_state_of(part), {"url": url, "validator": validator, "size_bytes": total})
            bar.update(task, completed=begun, total=total)
            with part.open("ab") as file:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    bar.advance(task, len(chunk))
    except FetchError as error:
        if error.status != REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Of no use any more: from the beginning, then.
        remove(part)
        raise FetchError("truncated", error.detail) from None


def _state_of(part: Path) -> Path:
    """Where is noted what the server said of a file when it was begun."""
    return part.with_name(f"{part.name}.json")


def _wrong(path: Path, file: SourceFile) -> str | None:
    """What a file has that is not as the manifest promises."""
    size = path.stat().st_size
    if file.size_bytes not in (None, size):
        return f"has {size} bytes where the manifest promises {file.size_bytes}"
    for algorithm, promised in (("sha256", file.sha256), ("md5", file.md5)):
        if promised and (found := digest(path, algorithm)) != promised:
            return f"has the {algorithm} {found} where the manifest promises {promised}"
    return None


def digest(path: Path, algorithm: str) -> str:
    """A checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def transfer_bar() -> Progress:
    """Bytes, bytes/s and the time left of each file, on stderr where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
