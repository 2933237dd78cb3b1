"""The output folder of a download: it has one writer at a time, and records the request that it was made for."""

import shutil
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import locked_folder, write_json
from dialog_gen.core.plural import count_of
from dialog_gen.core.sealed_json import sealed, unsealed

_BEGUN: Final = "request.json"
_FINISHED: Final = "download.json"
# A key that is missing in requests of earlier versions.
_ADDED: Final = "list_sha256"
_TAR_BYTES: Final = "tar_bytes"
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
    """The JSON object in a file; None if the file is missing or damaged, as after an interrupted write."""
    try:
        value = unsealed(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_complete(out: Path, request: dict[str, Any], made: Iterable[str]) -> bool:
    """Whether `out` has the complete download of `request`. If not, it is empty or has a part of the download.

    `made` are the names of the files and folders that a download creates. Raises UsageError if `out` was begun with
    another request, contains any of `made` from an unknown origin, or has a tar that is missing or of another size.
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
        if wrong := [name for name, size in found.get(_TAR_BYTES, {}).items() if _size(out, name) != size]:
            raise UsageError(
                f"{out} has {count_of(len(wrong), 'tar')} of another size than its {_FINISHED} tells, "
                f"first {wrong[0]}: put them back, or download into another folder"
            )
        shutil.rmtree(work_folder(out), ignore_errors=True)
    return found is not None


def has_begun(out: Path) -> bool:
    """Whether a download into `out` was begun and not finished."""
    return (work_folder(out) / _BEGUN).exists()


def begin(out: Path, request: dict[str, Any]) -> Path:
    """Stores the request; returns the work folder, which has a folder `images`."""
    work = work_folder(out)
    write_json(work / _BEGUN, sealed(request))
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
    sizes = {path.name: path.stat().st_size for path in sorted((work / "images").glob("*.tar"))}
    # The order matters: `images` in `out` is always complete, and download.json marks a finished download.
    (work / "images").replace(out / "images")
    write_json(out / _FINISHED, sealed({**request, **results, _TAR_BYTES: sizes}))
    shutil.rmtree(work)


def _size(out: Path, tar: str) -> int | None:
    try:
        return (out / "images" / tar).stat().st_size
    except FileNotFoundError:
        return None
