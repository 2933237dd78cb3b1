"""Locks on a dataset folder: either one process writes alone, or several processes share it, each with its own shards.

    OUT              locked by every writer, exclusively or shared
    OUT/.tmp         temporary files of an exclusive writer, which locks this folder, too; with several writers:
    OUT/.tmp/X/      temporary files of one writer, which locks this folder
    OUT/.tmp/S.lock  exists while shard S is being made; locked by the writer that makes it

All locks are system locks (flock), which the system releases when a process ends, however it ends. Unlocked temporary
files were left by a process that was killed; the next writer removes them. A folder that is not on local disk has no
locks.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import lock_removable, locked_folder
from dialog_gen.dataset.errors import BeingWrittenError
from dialog_gen.dataset.folder import DatasetFolder

TMP = ".tmp"
_LOCK = ".lock"


@contextmanager
def lock_exclusively(folder: DatasetFolder) -> Generator[Path]:
    """Locks a dataset folder against all other writers; yields an empty folder for temporary files.

    Raises UsageError if another process writes there, and OSError if the folder cannot be created.
    """
    if folder.local_root is None:
        with tempfile.TemporaryDirectory(prefix="dialog-gen-") as tmp:
            yield Path(tmp)
        return
    with locked_folder(folder.local_root, "run"):
        tmp = folder.local_root / TMP
        if tmp.is_file():
            tmp.unlink()
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        lock = lock_removable(tmp, wait=True)
        try:
            yield tmp
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def is_being_written(folder: DatasetFolder) -> bool:
    """Whether a process writes to a dataset folder now. False if the folder is not on local disk: nobody knows.

    Asking does not get in the way of a writer that starts at the same time.
    """
    if folder.local_root is None:
        return False
    tmp = folder.local_root / TMP
    with suppress(OSError):
        for path in (tmp, *(path for path in tmp.iterdir() if path.is_dir())):
            try:
                lock = lock_removable(path)
            except BlockingIOError:
                return True
            if lock is not None:
                os.close(lock)
    return False


def refuse_while_written(folder: DatasetFolder) -> None:
    """Raises BeingWrittenError if a process writes to the folder: a copy made now would be a mixture of old and new."""
    if is_being_written(folder):
        raise BeingWrittenError(folder.location)


class Claims:
    """The shards that one of several writers has claimed, so that no other writer makes them too."""

    def __init__(self, tmp: Path) -> None:
        """`tmp` is OUT/.tmp, which all writers share."""
        self._tmp = tmp
        self._descriptors: dict[str, int] = {}

    def take(self, shard: str) -> bool:
        """Claims a shard until `release`. Returns False if another writer has claimed it."""
        path = self._tmp / f"{shard}{_LOCK}"
        while shard not in self._descriptors:
            path.touch()
            try:
                if (descriptor := lock_removable(path)) is not None:
                    self._descriptors[shard] = descriptor
            except BlockingIOError:
                return False
        return True

    def release(self, shard: str) -> None:
        """Releases a shard; does nothing if this writer has not claimed it."""
        if (descriptor := self._descriptors.pop(shard, None)) is not None:
            (self._tmp / f"{shard}{_LOCK}").unlink(missing_ok=True)
            os.close(descriptor)

    def release_all(self) -> None:
        """Releases all shards that are still claimed."""
        for shard in list(self._descriptors):
            self.release(shard)


@contextmanager
def lock_shared(folder: DatasetFolder, begin: Callable[[Path, bool], None]) -> Generator[Path]:
    """Locks a dataset folder for this and other shared writers; yields an empty folder for this one's temporary files.

    Before it yields, it calls `begin(temporary folder, whether there is no other writer)`. During this call no other
    writer can start or end. Raises UsageError if a process writes there exclusively or if the folder is not on local
    disk, and OSError if the folder cannot be created.
    """
    if folder.local_root is None:
        raise UsageError(f"{folder.location} is not on local disk: only one process at a time can write there.")
    tmp = folder.local_root / TMP
    with locked_folder(folder.local_root, "run", shared=True), ExitStack() as stack:
        with membership_lock(tmp):
            own = Path(tempfile.mkdtemp(dir=tmp))
            lock = lock_removable(own)
            assert lock is not None  # noqa: S101 - the folder is new, nobody else can have removed it
            stack.callback(_leave, tmp, own, lock)
            begin(own, _clean_up(tmp, own))
        yield own


def _leave(tmp: Path, own: Path, lock: int) -> None:
    shutil.rmtree(own, ignore_errors=True)
    os.close(lock)
    with suppress(OSError), membership_lock(tmp, make=False):
        tmp.rmdir()  # fails while other writers use it


@contextmanager
def membership_lock(tmp: Path, *, make: bool = True) -> Generator[None]:
    """A lock on `tmp` that a shared writer takes while it starts, while it ends, and for files that all of them write.

    Raises OSError if the folder cannot be created, or, without `make`, if it does not exist.
    """
    descriptor = None
    while descriptor is None:
        if make:
            tmp.mkdir(exist_ok=True)
        elif not tmp.exists():
            raise FileNotFoundError(tmp)
        descriptor = lock_removable(tmp, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


def _clean_up(tmp: Path, own: Path) -> bool:
    """Removes the temporary files of writers that were killed. Returns whether there is no other living writer."""
    alone = True
    for path in tmp.iterdir():
        if path == own or not path.is_dir():
            continue
        try:
            lock = lock_removable(path)
        except BlockingIOError:
            alone = False
        else:
            shutil.rmtree(path, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    if alone:  # otherwise another writer may be about to lock one of these files
        for path in tmp.iterdir():
            if not path.is_dir():
                path.unlink()
    return alone
