"""The members of a tar, with checks that `tarfile` lacks: a damaged tar never looks like a shorter one."""

import errno
import tarfile
from collections.abc import Iterator
from typing import Any, Final, Self

_DESCRIPTIONS: Final = (*b"gKLXx",)
_MAX_DESCRIPTION_BYTES: Final = 1 << 24
_BYTES_AT_ONCE: Final = 1 << 20


class _Header(tarfile.TarInfo):
    """A header whose size can be true."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"a header with the size {header.size}")
        if header.type[0] in _DESCRIPTIONS and header.size > _MAX_DESCRIPTION_BYTES:
            # `tarfile` reads the whole name or comment into memory.
            raise tarfile.ReadError(f"a name or comment of {header.size} bytes")
        return header


def members_of(file: Any) -> Iterator[tarfile.TarInfo]:
    """The members of an uncompressed tar, in order; keeps none of them in memory.

    Raises tarfile.TarError or ValueError if the tar is damaged or cut short, or if anything but zeros follows its end
    mark, such as a second tar: no reader finds what is in there.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            known: list[tarfile.TarInfo] = vars(tar)["members"]
            begin = -1  # the tar was opened with its first member
            while member := tar.next():
                known.clear()  # otherwise tarfile keeps all members in memory
                if member.size < 0 or tar.offset <= begin:
                    raise tarfile.ReadError(f"{member.name!r} has the size {member.size}")
                begin = tar.offset
                yield member
            _check_end(file, tar.offset)
    except (OverflowError, RecursionError) as error:
        raise tarfile.ReadError(f"an impossible header: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a header leads to a place that no file can have
            raise
        raise tarfile.ReadError("a header with an impossible size") from error


def _check_end(file: Any, end: int) -> None:
    # tarfile treats a truncated or damaged header as the end of the tar. The real end is a block of zeros.
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end mark")
    while rest := file.read(_BYTES_AT_ONCE):
        if rest.count(0) < len(rest):
            raise tarfile.ReadError("data after the end mark, perhaps of a second tar")
