"""Files and folders that appear whole or not at all, locks, and what a disk can refuse as an error for people."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dialog_gen.core.errors import DialogGenError, UsageError

_TODO = {
    errno.ENOSPC: "Free some space and run again",
    errno.EDQUOT: "Free some of your quota and run again",
    errno.EACCES: "Check the permissions, or choose another --out",
    errno.EPERM: "Check the permissions, or choose another --out",
    errno.EROFS: "Choose another --out",
    errno.ENOENT: "Choose another --out",
    errno.ENOTDIR: "Choose another --out",
    errno.EEXIST: "Choose another --out",
}


@contextmanager
def writing(location: str | Path, *, left: str = "nothing was written") -> Generator[None]:
    """Raises DialogGenError for what the disk or the bucket of `location` refuses; `left` says what is there then."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        # Object stores and safetensors give no number.
        what = (error.strerror if isinstance(error, OSError) else None) or error
        todo = _TODO.get(number or 0, "Check the disk and run again")
        raise DialogGenError(f"cannot write {location}: {what}. {todo}; {left}.") from error


def fsync(path: Path) -> None:
    """Makes a file's bytes, or a folder's entries, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A path to write to; what was written there takes the place of `path` unless the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def put_file(part: Path, target: Path) -> None:
    """Moves a finished file of the same disk to its place, so that the move outlasts a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    fsync(target.parent)


@contextmanager
def whole_folder(out: Path) -> Generator[Path]:
    """A folder to write to, which becomes `out` when the block ends and is removed when it raises.

    Raises UsageError where `out` exists, DialogGenError for what the disk refuses.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists already: choose another one.")
    part = out.with_name(f".{out.name}.part")
    with writing(out):
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir(parents=True)
        try:
            yield part
            part.replace(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that was asked for: whole or not at all. Raises DialogGenError for what the disk refuses."""
    with writing(path), replacing(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as a file that appears whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def locked_folder(folder: Path, user: str, *, shared: bool = False) -> Generator[None]:
    """Makes `folder` and holds it against other processes, or with `shared` against those that want it alone.

    The system lets go of the lock when this process ends. Raises UsageError where another `user`, such as "run", holds
    it, and OSError where it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another {user} is writing to {folder}: wait for it, or choose another folder.") from None
        yield
    finally:
        os.close(descriptor)


def lock_removable(path: Path, *, wait: bool = False) -> int | None:
    """Locks a file or folder that its holder may remove; closing the descriptor that is returned unlocks it.

    None where there is nothing at `path`, or it was removed meanwhile. Raises BlockingIOError where another holds the
    lock, unless it is to `wait`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        # The lock of a removed file excludes nobody: by now its name is free, or that of another file.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, FileNotFoundError):
            return None
        raise
    os.close(descriptor)
    return None
