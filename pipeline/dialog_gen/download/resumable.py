"""Downloads single files over HTTP: resumes interrupted downloads, and checks size and checksums."""

import hashlib
import math
import shutil
from dataclasses import replace
from http.client import PARTIAL_CONTENT, REQUESTED_RANGE_NOT_SATISFIABLE
from pathlib import Path
from typing import Final

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import check_regular, open_regular, write_json
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.sealed_json import sealed
from dialog_gen.download.folder import read_json
from dialog_gen.download.http import FetchPolicy, open_url, with_retries
from dialog_gen.download.manifests import SourceFile
from dialog_gen.download.outcomes import FetchError

_CHUNK_BYTES: Final = 1 << 16
_MAX_FILE_BYTES: Final = 1 << 38
"""Limit for a file whose size is not published."""
_MB: Final = 1e6


def fetch_file(
    file: SourceFile, folder: Path, out: Path, policy: FetchPolicy, on_progress: OnProgress = ignore_progress
) -> Path:
    """Makes sure that a file exists and is as promised; returns its path.

    A local file is used where it is. A file that was downloaded by hand is expected in `out`. Other files are fetched
    into `folder`; they get their name when they are complete and checked. A `.part` file is continued if the server
    still has the same file. `policy` applies except for its limits of size and total time, since files are large.

    Raises UsageError if a local file, or one to download by hand, is missing or differs from the manifest;
    FailedCheckError if the file cannot be fetched, or differs from the manifest.
    """
    own = Path(file.path) if file.path else out / file.file_name
    if (file.path or file.by_hand) and own.exists():
        require_regular(own)
        if wrong := _wrong(own, file):
            raise UsageError(f"{own} {wrong}: is it the right file?")
        return own
    if not file.url:
        advice = f" Get it by hand: {file.by_hand}; then put it there and run again." if file.by_hand else ""
        raise UsageError(f"{own} is not there.{advice}")
    complete = folder / file.file_name
    if complete.exists():
        if wrong := _wrong(complete, file):
            raise FailedCheckError(f"{complete} {wrong}: remove it, and run again to fetch it anew.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{file.file_name}.part"
        try:
            _fetch(file.url, part, file.size_bytes, policy, on_progress)
        except FetchError as error:
            advice = (
                f" Or get it by hand: {file.by_hand}; put it into {out} as {file.file_name}." if file.by_hand else ""
            )
            raise FailedCheckError(
                f"{file.url} could not be fetched: {error}. The received part is kept: run again to continue.{advice}"
            ) from None
        if wrong := _wrong(part, file):
            remove(part)
            remove(_state_of(part))
            raise FailedCheckError(f"what came from {file.url} {wrong}; it was removed.")
        part.rename(complete)
        remove(_state_of(part))
    return complete


def require_regular(path: Path) -> None:
    """Raises UsageError unless `path` is a regular file that can be read."""
    try:
        check_regular(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from None


def _fetch(url: str, part: Path, size_bytes: int | None, policy: FetchPolicy, on_progress: OnProgress) -> None:
    """Completes `part`; tries again as long as each try adds bytes."""
    policy = replace(policy, deadline_s=None, max_bytes=size_bytes or _MAX_FILE_BYTES)
    most = 0
    while True:
        try:
            with_retries(policy, lambda: _continue(url, part, policy, on_progress))
        except FetchError as error:
            size = part.stat().st_size if part.exists() else 0
            if not error.transient or size <= most:
                raise
            most = size
        else:
            return


def _continue(url: str, part: Path, policy: FetchPolicy, on_progress: OnProgress) -> None:
    """Makes one request, for the missing bytes if the server still has the same file, else for the whole file."""
    state = read_json(_state_of(part)) or {}
    same = state.get("url") == url and state.get("validator") and part.exists()
    begun = part.stat().st_size if same else 0
    if begun and begun == state.get("size_bytes"):
        return
    headers = {"Range": f"bytes={begun}-", "If-Range": state["validator"]} if begun else {}
    try:
        with open_url(url, policy, headers) as response:
            is_continued = begun > 0 and response.status == PARTIAL_CONTENT
            if is_continued and not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
                raise FetchError(
                    "truncated",
                    "the server sent another range than the requested one",
                    status=REQUESTED_RANGE_NOT_SATISFIABLE,
                )
            if not is_continued:
                # Removed before the state is written, because these bytes do not belong to the file that it describes.
                remove(part)
                begun = 0
            total = None if response.length is None else begun + response.length
            etag = response.headers.get("ETag", "W/")
            # A weak ETag does not guarantee equal bytes.
            validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
            write_json(_state_of(part), sealed({"url": url, "validator": validator, "size_bytes": total}))
            total_mb = None if total is None else math.ceil(total / _MB)
            with part.open("ab") as file:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    on_progress(part.stem, math.ceil(file.tell() / _MB), total_mb, "MB")
    except FetchError as error:
        if error.status != REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # The partial file is useless, so the next try starts from the beginning.
        remove(part)
        raise FetchError("truncated", error.detail) from None


def _state_of(part: Path) -> Path:
    """The file with the URL, validator and size that the server gave when the download began."""
    return part.with_name(f"{part.name}.json")


def _wrong(path: Path, file: SourceFile) -> str | None:
    """The difference between a file and the manifest, in words; None if there is none."""
    size = path.stat().st_size
    if file.size_bytes not in (None, size):
        return f"has {size} bytes where the manifest promises {file.size_bytes}"
    for algorithm, promised in (("sha256", file.sha256), ("md5", file.md5)):
        if promised and (found := digest(path, algorithm)) != promised:
            return f"has the {algorithm} {found} where the manifest promises {promised}"
    return None


def digest(path: Path, algorithm: str) -> str:
    """A checksum of a regular file, in hexadecimal digits. Raises OSError if it cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def remove(path: Path) -> None:
    """Removes a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
