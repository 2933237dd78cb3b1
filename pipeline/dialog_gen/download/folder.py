"""The output folder of a download: one writer at a time, and the request that it was begun with."""

import json
import shutil
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import locked_folder, write_json

_BEGUN: Final = "request.json"
_FINISHED: Final = "download.json"
# A key that requests of earlier versions lack.
_ADDED: Final = "list_sha256"
KEPT: Final = "what is finished is kept"


@contextmanager
def locked(out: Path) -> Generator[None, None, None]:
    """Makes the folder and holds it against a second download; the system lets go of it when this process ends.

    Raises UsageError where it cannot be made, or another download holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(out, "download"))
        except OSError as error:
            raise UsageError(f"cannot use {out} as output folder: {error.strerror}") from None
        yield


def work_folder(out: Path) -> Path:
    """The folder for files that are not, or not yet, part of the output."""
    return out / ".download"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where the file is missing or was cut off while being written."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_complete(out: Path, request: dict[str, Any], made: Iterable[str]) -> bool:
    """Whether `out` holds the complete download; if not, it is empty or holds a part of it.

    Raises UsageError if it was begun with another request, holds any of `made` of unknown origin, or lost a tar.
    """
    found = read_json(out / _FINISHED)
    begun = found if found is not None else read_json(work_folder(out) / _BEGUN)
    if begun is None:
        if foreign := [name for name in made if (out / name).exists()]:
            raise UsageError(f"{out} holds {', '.join(foreign)} of no known download: choose another folder")
        return False
    compared = [key for key in request if key in begun or key != _ADDED]
    if differing := [key for key in compared if begun.get(key) != request[key]]:
        was = ", ".join(f"{key} = {begun.get(key)}" for key in differing)
        now = ", ".join(f"{key} = {request[key]}" for key in differing)
        raise UsageError(f"{out} was begun with {was}, now asked for with {now}: choose another folder")
    if found is not None:
        tars = [f"{number:05d}.tar" for number in range(found.get("shards", 0))]
        if missing := [name for name in tars if not (out / "images" / name).exists()]:
            raise UsageError(
                f"{out} lacks {len(missing)} tars that its {_FINISHED} counts, first {missing[0]}: put them back"
            )
        shutil.rmtree(work_folder(out), ignore_errors=True)
    return found is not None


def has_begun(out: Path) -> bool:
    """Whether a download into `out` is under way: begun, not finished."""
    return (work_folder(out) / _BEGUN).exists()


def begin(out: Path, request: dict[str, Any]) -> Path:
    """Writes down the request; returns the folder to work in."""
    work = work_folder(out)
    write_json(work / _BEGUN, request)
    if (out / "images").exists():
        # `finish` was interrupted.
        (out / "images").replace(work / "images")
    (work / "images").mkdir(exist_ok=True)
    return work


def finish(out: Path, request: dict[str, Any], *, images: int, shards: int) -> None:
    """Moves the tars from the work folder to `out`, and marks the download as complete."""
    work = work_folder(out)
    # In this order: a folder that has `images` is whole, one that has download.json is finished.
    (work / "images").replace(out / "images")
    write_json(out / _FINISHED, {**request, "images": images, "shards": shards})
    shutil.rmtree(work)
