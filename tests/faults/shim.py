"""Builds the shim, and says which file operation is to fail, and how."""

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")
VARIABLE = "FAULTS_STATE"
"""The environment variable that names the file of the shim's state."""
# In the order of shim.c.
KINDS = ("open", "create", "read", "write", "fsync", "rename", "unlink", "mkdir")
MODES = ("none", "EIO", "EIO from here on", "ENOSPC", "disk full", "short", "torn", "killed before", "killed after")

_ANY = ("EIO", "EIO from here on", "killed before", "killed after")
_FULL = ("ENOSPC", "disk full")
MODES_OF = {
    "open": _ANY,
    "create": (*_ANY, *_FULL),
    "read": (*_ANY, "short"),
    "write": (*_ANY, *_FULL, "short", "torn"),
    "fsync": (*_ANY, "ENOSPC"),
    "rename": (*_ANY, "ENOSPC"),
    "unlink": _ANY,
    "mkdir": (*_ANY, *_FULL),
}
"""Kind of operation -> the ways in which it can fail."""


class Point(NamedTuple):
    """The operation to fail: the `number`-th (from 1) of its kind."""

    kind: str
    number: int
    mode: str

    def __str__(self) -> str:
        return f"{self.kind} {self.number} {self.mode}"


class _State(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("mode", ctypes.c_int32),
        ("fired", ctypes.c_int32),
        ("number", ctypes.c_int64),
        ("counts", ctypes.c_int64 * len(KINDS)),
        ("root", ctypes.c_char * 1024),
    )


def build(folder: Path) -> Path | None:
    """Compiles the shim into `folder`, for LD_PRELOAD; None if this machine cannot."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "shim.so"
    done = subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE], capture_output=True)
    return library if done.returncode == 0 else None


def make_state(file: Path) -> Path:
    """Writes the file that `VARIABLE` has to name before a process with the shim starts."""
    file.write_bytes(bytes(ctypes.sizeof(_State)))
    return file


class Shim:
    """The shim of this process and of all that come from it."""

    def __init__(self, file: Path, root: Path) -> None:
        """`root` is the folder whose files are followed."""
        with file.open("r+b") as opened:
            self._state = _State.from_buffer(mmap.mmap(opened.fileno(), 0))
        self._state.root = bytes(root)

    @contextmanager
    def armed(self, point: Point | None = None) -> Generator[None]:
        """Counts operations, and lets one fail, until the block ends."""
        state = self._state
        state.fired = 0
        state.kind, state.number, state.mode = 0, 0, 0
        if point:
            state.kind, state.number, state.mode = KINDS.index(point.kind), point.number, MODES.index(point.mode)
        for place in range(len(KINDS)):
            state.counts[place] = 0
        state.armed = 1
        try:
            yield
        finally:
            state.armed = 0

    @property
    def counts(self) -> dict[str, int]:
        """Operations of each kind since the shim was armed."""
        return dict(zip(KINDS, self._state.counts, strict=True))

    @property
    def fired(self) -> bool:
        """Whether the operation came that was to fail."""
        return bool(self._state.fired)
