"""The processes that an engine started: found and killed when the engine hangs."""

import multiprocessing
import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def children() -> set[int]:
    """The ids of the child processes of this process, without Python's own resource tracker."""
    return {pid for pid, parent in _parents().items() if parent == os.getpid() and not _is_tracker(pid)}


def has_tracker() -> bool:
    """Whether Python's own resource tracker runs. It must outlive this process, to remove what that leaves."""
    return any(parent == os.getpid() and _is_tracker(pid) for pid, parent in _parents().items())


def kill_children(keep: Collection[int]) -> None:
    """Kills the child processes that are not in `keep`, and all their descendants."""
    doomed = children().difference(keep)
    parents = _parents()
    while more := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for pid in doomed:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def reap_children(keep: Collection[int]) -> None:
    """Removes the child processes that have ended and are not in `keep` from the system's table."""
    for pid in children().difference(keep):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _parents() -> dict[int, int]:
    """Process id -> that of its parent; without /proc, only this process's children by `multiprocessing`."""
    if not _PROC.is_dir():
        return {child.pid: os.getpid() for child in multiprocessing.active_children() if child.pid}
    found = dict[int, int]()
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # The name of the program stands in parentheses and may contain some itself.
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def _is_tracker(pid: int) -> bool:
    # It removes what is left of killed processes, such as shared memory.
    with suppress(OSError):
        return b"resource_tracker" in (_PROC / str(pid) / "cmdline").read_bytes()
    return False
