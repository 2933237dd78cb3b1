"""Many files as one array of bytes, so that one index operation reads from all of them.

The files are mapped one after another into one range of addresses. Nothing is copied, and memory that is used is the
system's cache of files.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_MAP_FIXED = 0x10  # the same number on Linux and macOS; `mmap` has no name for it
_PAGE = mmap.PAGESIZE


class MappedFiles:
    """The bytes of several files, read only."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises OSError for a file that cannot be read."""
        self.sizes = [file.stat().st_size for file in files]
        pages = np.array([-(-size // _PAGE) for size in self.sizes], np.int64)
        ends = np.cumsum(pages) * _PAGE
        self.starts: list[int] = (ends - pages * _PAGE).tolist()
        """Where each file begins in `bytes`: at a multiple of the page size."""
        total = max(int(pages.sum()), 1) * _PAGE
        call, unmap = _functions()
        base = _checked(call(None, total, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        memory = (ctypes.c_uint8 * total).from_address(base)
        # Every array that shares the memory keeps this object alive.
        weakref.finalize(memory, unmap, base, total)
        for file, size, start in zip(files, self.sizes, self.starts, strict=True):
            if not size:
                continue
            descriptor = os.open(file, os.O_RDONLY)
            try:
                flags = mmap.MAP_SHARED | _MAP_FIXED
                _checked(call(base + start, size, mmap.PROT_READ, flags, descriptor, 0))
            finally:
                os.close(descriptor)
        self.address = base
        untyped: Any = memory
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(untyped, np.uint8)
        self.tensor = torch.from_numpy(self.bytes)
        """All files; between them are zeros up to the next page."""
        # A write would end the process.
        self.bytes.flags.writeable = False


def _functions() -> tuple[Any, Any]:
    """`mmap` and `munmap` of the C library: Python's own cannot choose an address."""
    library = ctypes.CDLL(None, use_errno=True)
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.mmap.restype = pointer
    library.mmap.argtypes = [pointer, ctypes.c_size_t, number, number, number, ctypes.c_int64]
    library.munmap.argtypes = [pointer, ctypes.c_size_t]
    return library.mmap, library.munmap


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return address
