"""Atomic files and folders, locks, readable errors for failed writes, and opening files that the user names.

An atomic file or folder is complete when it appears; if writing fails, it does not appear.
"""

import errno
import fcntl
import json
import os
import shutil
import stat
import unicodedata
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from dialog_gen.core.errors import DialogGenError, UsageError

# The system tells it only by setting another one, which other threads would see for a moment; so once, at the start.
_UMASK = os.umask(0o022)
os.umask(_UMASK)
_ADVICE = {
    errno.ENOSPC: "Free some space and run again",
    errno.EDQUOT: "Free some of your quota and run again",
    errno.EACCES: "Check the permissions, or choose another --out",
    errno.EPERM: "Check the permissions, or choose another --out",
    errno.EROFS: "Choose another --out",
    errno.ENOENT: "Choose another --out",
    errno.ENOTDIR: "Choose another --out",
    errno.EEXIST: "Choose another --out",
    errno.EISDIR: "A folder has the name of a file: move it away and run again",
}

_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def absolute(path: str) -> str:
    """A local path as an absolute one without "..", equal for equal folders wherever it is said; a URL as it is."""
    if "://" in path:
        return path
    given = Path(path).expanduser().absolute()
    plain = Path(os.path.normpath(given))
    # Behind a symbolic link, ".." is another folder than the text says.
    return str(plain if not given.exists() or (plain.exists() and plain.samefile(given)) else given.resolve())


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file for reading bytes.

    Raises OSError at once for anything else, such as a pipe or a device, which may have no end; `strerror` says what it
    is. All files that the user names are opened with this function, `read_regular` or `check_regular`.
    """
    # Without O_NONBLOCK, a pipe is opened only when somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"not a regular file, but {_KINDS.get(kind, 'something else')}", str(path))
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path) -> bytes:
    """The content of a regular file. Raises OSError like `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_regular(path: str | Path) -> None:
    """Raises OSError like `open_regular`, for a file that another library will open."""
    open_regular(path).close()


def name_key(name: str) -> str:
    """A key that is equal for names that some file systems do not distinguish: by case or by Unicode normalisation."""
    return unicodedata.normalize("NFC", name).casefold()


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


def give_usual_mode(*paths: Path) -> None:
    """Gives files the mode that `open` would; safetensors writes files that only their owner can read.

    Raises OSError.
    """
    for path in paths:
        path.chmod(0o666 & ~_UMASK)


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


def check_name(out: Path) -> None:
    """Raises UsageError for a name that is not UTF-8: other libraries cannot write there, and fail after the work."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{out} is no UTF-8, so files there cannot be written: choose another folder.") from None


@contextmanager
def whole_folder(out: Path) -> Generator[Path]:
    """Yields a folder to write to; it becomes `out` when the block ends, and is removed if the block raises.

    Raises UsageError if `out` exists or is not UTF-8, and DialogGenError if it cannot be written.
    """
    check_name(out)
    if out.exists():
        raise UsageError(f"--out {out} exists already: choose another folder.")
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


class FolderLockedError(UsageError):
    """Another process has locked a folder."""


@contextmanager
def locked_folder(folder: Path, user: str, *, shared: bool = False) -> Generator[None]:
    """Creates `folder` and locks it: exclusively, or with `shared` together with other processes that share it.

    The system releases the lock when this process ends. Raises FolderLockedError if another process holds a lock that
    excludes this one; the message calls that process `user`, such as "run". Raises UsageError if the name is not UTF-8,
    and OSError if the folder cannot be created.
    """
    check_name(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            said = f"another {user} is writing to {folder}: wait for it, or choose another folder."
            raise FolderLockedError(said) from None
        yield
    finally:
        os.close(descriptor)


def wait_while_locked(folder: Path) -> None:
    """Returns when no other process has `folder` locked; then any process may be the next. Raises OSError."""
    if (descriptor := lock_removable(folder, wait=True)) is not None:
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
