"""Atomic files and folders, locks, and readable errors for failed writes.

An atomic file or folder is complete when it appears; if writing fails, it does not appear.
"""

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

_ADVICE = {
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
    """Turns an error of the disk or the object store into a DialogGenError.

    `left` ends the message: it says what remains at `location` after the error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        # Errors of object stores and of safetensors have no errno.
        what = (error.strerror if isinstance(error, OSError) else None) or error
        todo = _ADVICE.get(number or 0, "Check the disk and run again")
        raise DialogGenError(f"cannot write {location}: {what}. {todo}; {left}.") from error


def fsync(path: Path) -> None:
    """Flushes a file's bytes, or a folder's entries, to disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yields a temporary path to write to; its file replaces `path` when the block ends, or is removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def put_file(part: Path, target: Path) -> None:
    """Moves a finished file to `target` on the same disk; the move survives a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    fsync(target.parent)


@contextmanager
def whole_folder(out: Path) -> Generator[Path]:
    """Yields a folder to write to; it becomes `out` when the block ends, and is removed if the block raises.

    Raises UsageError if `out` exists, and DialogGenError if it cannot be written.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists already: choose another one.")
    part = out.with_name(f".{out.name}.part")
    with writing(out):
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        part.mkdir(parents=True)
        try:
            yield part
            part.replace(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file atomically. Raises DialogGenError if it cannot be written."""
    with writing(path), replacing(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object to a file, atomically. Raises OSError if it cannot be written."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def locked_folder(folder: Path, user: str, *, shared: bool = False) -> Generator[None]:
    """Creates `folder` and locks it: exclusively, or with `shared` together with other processes that share it.

    The system releases the lock when this process ends. Raises UsageError if another process holds a lock that excludes
    this one; the message calls that process `user`, such as "run". Raises OSError if the folder cannot be created.
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
    """Locks a file or folder that the process with the lock may remove. Returns a descriptor; closing it unlocks.

    Returns None if nothing exists at `path`, or if it was removed meanwhile. If another process has the lock, waits for
    it with `wait`, else raises BlockingIOError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        # The lock on a removed file excludes nobody: its name may already belong to a new file.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, FileNotFoundError):
            return None
        raise
    os.close(descriptor)
    return None
