"""The output folder of a download: it has one writer at a time, and records the request that it was made for."""

import shutil
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import locked_folder, write_json
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.plural import count_of

_BEGUN: Final = "request.json"
_FINISHED: Final = "download.json"
# A key that is missing in requests of earlier versions.
_ADDED: Final = "list_sha256"
KEPT: Final = "what is finished is kept"


@contextmanager
def locked(out: Path) -> Generator[None, None, None]:
    """Creates the folder and locks it against a second download. The lock ends with the block or with this process.

    Raises UsageError if the folder cannot be created, or another download has locked it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(out, "download"))
        except OSError as error:
            raise UsageError(f"cannot use {out} as the output folder: {error.strerror}") from None
        yield


def work_folder(out: Path) -> Path:
    """The folder for temporary files and files that are not complete yet."""
    return out / ".download"


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing or is not a JSON object, as after an interrupted write."""
    try:
        value = parse_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_complete(out: Path, request: dict[str, Any], made: Iterable[str]) -> bool:
    """Whether `out` has the complete download of `request`. If not, it is empty or has a part of the download.

    `made` are the names of the files and folders that a download creates. Raises UsageError if `out` was begun with
    another request, contains any of `made` from an unknown origin, or lacks a tar.
    """
    found = read_json(out / _FINISHED)
    begun = found if found is not None else read_json(work_folder(out) / _BEGUN)
    if begun is None:
        if foreign := [name for name in made if (out / name).exists()]:
            raise UsageError(f"{out} holds {', '.join(foreign)} of an unknown download: choose another folder")
        return False
    compared = [key for key in request if key in begun or key != _ADDED]
    if differing := [key for key in compared if begun.get(key) != request[key]]:
        was = ", ".join(f"{key} = {begun.get(key)}" for key in differing)
        now = ", ".join(f"{key} = {request[key]}" for key in differing)
        raise UsageError(f"{out} was begun with {was}, this request has {now}: choose another folder")
    if found is not None:
        tars = [f"{number:05d}.tar" for number in range(found.get("shards", 0))]
        if missing := [name for name in tars if not (out / "images" / name).exists()]:
            raise UsageError(
                f"{out} lacks {count_of(len(missing), 'tar')} that its {_FINISHED} counts, first {missing[0]}: "
                f"put them back"
            )
        shutil.rmtree(work_folder(out), ignore_errors=True)
    return found is not None


def has_begun(out: Path) -> bool:
    """Whether a download into `out` was begun and not finished."""
    return (work_folder(out) / _BEGUN).exists()


def begin(out: Path, request: dict[str, Any]) -> Path:
    """Stores the request; returns the work folder, which has a folder `images`."""
    work = work_folder(out)
    write_json(work / _BEGUN, request)
    if (out / "images").exists():
        # A previous `finish` was interrupted.
        (out / "images").replace(work / "images")
    (work / "images").mkdir(exist_ok=True)
    return work


def finish(out: Path, request: dict[str, Any], **results: Any) -> None:
    """Moves the tars from the work folder to `out` and marks the download as complete; writes the results.

    `results` are JSON values such as the numbers of `images` and `shards`.
    """
    work = work_folder(out)
    # The order matters: `images` in `out` is always complete, and download.json marks a finished download.
    (work / "images").replace(out / "images")
    write_json(out / _FINISHED, {**request, **results})
    shutil.rmtree(work)
