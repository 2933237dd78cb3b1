"""Checksums of the blocks of a file: a reader of a part of the file checks what it reads, and reads little more."""

import base64
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

BLOCK_BYTES: Final = 1 << 16
_BLOCKS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Digests:
    """The size and the checksums of a file."""

    bytes: int
    sha256: str
    """In hex."""
    block_crc32: str
    """CRC-32 of each block of 64 KiB, 4 little-endian bytes each, in base64."""


def digests(file: BinaryIO, write: Callable[[bytes], object] = lambda chunk: None) -> Digests:
    """Reads an open file to its end, and calls `write` for each chunk of it. Raises OSError if it cannot be read."""
    sha256, crcs, size = hashlib.sha256(), list[int](), 0
    while chunk := file.read(_BLOCKS_AT_ONCE * BLOCK_BYTES):
        write(chunk)
        sha256.update(chunk)
        crcs += _crcs(chunk)
        size += len(chunk)
    return Digests(size, sha256.hexdigest(), base64.b64encode(_packed(crcs)).decode())


class DamagedFileError(OSError):
    """What was read differs from what was written."""


class CheckedFile(io.RawIOBase):
    """Reads an open file in whole blocks, and checks each block that it reads.

    The methods that read raise DamagedFileError if a block differs from its checksum.
    """

    def __init__(self, file: Any, size: int, block_crc32: str) -> None:
        """`file` has `size` bytes according to its `Digests`. Raises DamagedFileError if it has not."""
        super().__init__()
        self._file, self._size, self._at = file, size, 0
        self._last: tuple[int, bytes] = (-1, b"")
        """The last block that was read: columns that follow one another often share it."""
        try:
            self._crcs = base64.b64decode(block_crc32, validate=True)
        except ValueError:
            raise DamagedFileError("its checksums are not valid base64") from None
        if (found := file.seek(0, io.SEEK_END)) != size:
            raise DamagedFileError(f"it has {found} bytes, {size} are promised")
        if len(self._crcs) != 4 * -(-size // BLOCK_BYTES):
            raise DamagedFileError("it has another number of checksums than of blocks")

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, or all up to the end."""
        end = self._size if size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        first = self._at // BLOCK_BYTES
        data = self._blocks(first, -(-end // BLOCK_BYTES))
        start = self._at - first * BLOCK_BYTES
        self._at = end
        return data[start : end - first * BLOCK_BYTES]

    def readinto(self, buffer: Any, /) -> int:
        """Reads into a buffer; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Sets the place to read from; returns it."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """The place to read from."""
        return self._at

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def _blocks(self, first: int, end: int) -> bytes:
        """The bytes of the blocks from `first` to before `end`."""
        number, last = self._last
        if (first, end) == (number, number + 1):
            return last
        start = first * BLOCK_BYTES
        wanted = min(end * BLOCK_BYTES, self._size) - start
        self._file.seek(start)
        data = self._file.read(wanted)
        if len(data) != wanted or _packed(_crcs(data)) != self._crcs[4 * first : 4 * end]:
            raise DamagedFileError(f"bytes {start} to {start + wanted} have another checksum than promised")
        self._last = (end - 1, data[(end - 1 - first) * BLOCK_BYTES :])
        return data


def _crcs(data: bytes) -> list[int]:
    view = memoryview(data)
    return [zlib.crc32(view[start : start + BLOCK_BYTES]) for start in range(0, len(data), BLOCK_BYTES)]


def _packed(crcs: list[int]) -> bytes:
    return struct.pack(f"<{len(crcs)}I", *crcs)
