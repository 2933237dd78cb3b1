"""Who may write to a dataset folder: one process alone, or several that share it, each with shards of its own.

    OUT              locked by everyone who writes: alone, or shared
    OUT/.tmp         temporary files of the one who writes alone; of those who share the folder:
    OUT/.tmp/X/      the temporary files of one of them, locked by it
    OUT/.tmp/S.lock  says that the shard S is being made, locked by the one who makes it

All locks are the system's (flock), which lets go of them when a process ends, however it ends. What nobody has locked
was left by a process that was killed, and is removed by the next one. A folder that is not on local disk has no locks.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import lock_removable, locked_folder
from dialog_gen.dataset.folder import DatasetFolder

TMP = ".tmp"
_LOCK = ".lock"


@contextmanager
def held_alone(folder: DatasetFolder) -> Generator[Path]:
    """Holds a folder against all others; yields an empty folder for temporary files.

    Raises UsageError where another process writes there, OSError where the folder cannot be made.
    """
    if folder.local_root is None:
        with tempfile.TemporaryDirectory(prefix="dialog-gen-") as tmp:
            yield Path(tmp)
        return
    with locked_folder(folder.local_root, "run"):
        tmp = folder.local_root / TMP
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        try:
            yield tmp
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


class Claims:
    """The shards that one of several writers makes."""

    def __init__(self, tmp: Path) -> None:
        """`tmp` is the folder that all writers share."""
        self._tmp = tmp
        self._held: dict[str, int] = {}

    def take(self, shard: str) -> bool:
        """Claims a shard until `release`. False where another writer makes it."""
        path = self._tmp / f"{shard}{_LOCK}"
        while shard not in self._held:
            path.touch()
            try:
                if (descriptor := lock_removable(path)) is not None:
                    self._held[shard] = descriptor
            except BlockingIOError:
                return False
        return True

    def release(self, shard: str) -> None:
        """Gives a shard up, if it is claimed."""
        if (descriptor := self._held.pop(shard, None)) is not None:
            (self._tmp / f"{shard}{_LOCK}").unlink(missing_ok=True)
            os.close(descriptor)

    def release_all(self) -> None:
        """Gives up what is still claimed."""
        for shard in list(self._held):
            self.release(shard)


@contextmanager
def held_together(folder: DatasetFolder, begin: Callable[[Path, bool], None]) -> Generator[Path]:
    """Holds a folder together with others who do the same; yields an empty folder for this one's temporary files.

    First calls `begin` with that folder and whether nobody else writes, while nobody else may come or go. Raises
    UsageError where a process writes there alone or the folder is not on local disk, OSError where it cannot be made.
    """
    if folder.local_root is None:
        raise UsageError(f"{folder.location} is not on local disk: only one process at a time can write there.")
    tmp = folder.local_root / TMP
    with locked_folder(folder.local_root, "run", shared=True), ExitStack() as stack:
        with _gate(tmp):
            own = Path(tempfile.mkdtemp(dir=tmp))
            lock = lock_removable(own)
            assert lock is not None  # noqa: S101 - nobody else knows it yet
            stack.callback(_leave, tmp, own, lock)
            begin(own, _remove_dead(tmp, own))
        yield own


def _leave(tmp: Path, own: Path, lock: int) -> None:
    shutil.rmtree(own, ignore_errors=True)
    os.close(lock)
    with suppress(OSError), _gate(tmp, make=False):
        tmp.rmdir()  # fails while others are in it


@contextmanager
def _gate(tmp: Path, *, make: bool = True) -> Generator[None]:
    """Held by whoever comes or goes. Raises OSError where the folder cannot be made, or is gone."""
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


def _remove_dead(tmp: Path, own: Path) -> bool:
    """Removes what killed writers left. Whether no other writer lives."""
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
    if alone:  # else a living one may be about to lock one of them
        for path in tmp.iterdir():
            if not path.is_dir():
                path.unlink()
    return alone
