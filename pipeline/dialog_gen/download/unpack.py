"""Unpacks zip and tar archives of unknown origin, so that they cannot change anything outside their folder.

Only plain files and folders are unpacked. A whole archive is refused if any name in it leads outside (absolute paths,
"..", a backslash, a drive letter), is too long or too deep, occurs twice, or differs from another name by case only; if
it contains links, devices or encrypted files; or if its unpacked size is over the `UnpackLimits`. Sizes in headers are
not trusted; unpacked bytes are counted.
"""

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from dialog_gen.core.errors import FailedCheckError
from dialog_gen.core.files import name_key

_CHUNK_BYTES: Final = 1 << 20
_GZIP_MAGIC: Final = b"\x1f\x8b"
# These limits fit all common file systems, and leave room for the path of the folder.
_MAX_PART_BYTES: Final = 255
_MAX_NAME_BYTES: Final = 1024
_MAX_DEPTH: Final = 64
_ENTRY_BYTES: Final = 512
"""Bytes counted for each file or folder in addition to its content, because a short name can create 64 folders."""
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """How large an archive may become when it is unpacked."""

    max_bytes: int = 1 << 40
    max_members: int = 5_000_000
    max_ratio: float = 100
    """Unpacked bytes per byte of the archive. Deflate can reach 1,032."""
    free_bytes: int = 64 << 20
    """Unpacked bytes that are always allowed, whatever the ratio."""

    def bytes_of(self, archive: Path) -> int:
        """The largest number of bytes that may be unpacked from this archive."""
        return min(self.max_bytes, max(self.free_bytes, int(archive.stat().st_size * self.max_ratio)))


DEFAULT_LIMITS: Final = UnpackLimits()


def unpack(archive: Path, to: Path, limits: UnpackLimits = DEFAULT_LIMITS) -> int:
    """Unpacks a zip, tar or tar.gz (recognised by its content) as the folder `to`; returns the number of files.

    `to` must not exist; it becomes visible when it is complete. An archive that contains only a folder of the same name
    as `to` becomes that folder.

    Raises FailedCheckError for an archive that is refused or damaged, OSError if the disk is full.
    """
    part = to.with_name(f"{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        files = _Unpacking(archive, part, limits).run()
        inner = part / to.name
        if inner.is_dir() and list(part.iterdir()) == [inner]:
            inner.rename(to)
            part.rmdir()
        else:
            part.rename(to)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return files


class _Unpacking:
    def __init__(self, archive: Path, root: Path, limits: UnpackLimits) -> None:
        self.archive, self.root = archive, root
        self.max_members, self.max_bytes = limits.max_members, limits.bytes_of(archive)
        self.members = self.written = self.files = 0
        # Case-folded name -> (whether it is a folder, its spelling, the number of its member in the archive).
        self.seen: dict[str, tuple[bool, str, int]] = {}

    def run(self) -> int:
        """Unpacks everything; returns the number of files."""
        try:
            if zipfile.is_zipfile(self.archive):
                self._zip()
            else:
                self._tar()
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
            raise self._refusal(f"it is damaged, or no zip or tar: {error}") from None
        except (NotImplementedError, UnicodeError, OverflowError) as error:
            raise self._refusal(f"it is packed in a way that is not supported: {error}") from None
        if not self.files:
            raise self._refusal("it holds no files")
        return self.files

    def _zip(self) -> None:
        with zipfile.ZipFile(self.archive) as file:
            for member in file.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise self._refusal(f"{_short(member.filename)} is a link or device")
                if member.flag_bits & 1:
                    raise self._refusal(f"{_short(member.filename)} is encrypted")
                # `filename` is truncated at a zero byte; `orig_filename` is complete.
                path = self._place(member.orig_filename, is_folder=member.is_dir())
                if path and not member.is_dir():
                    with file.open(member) as content:
                        self._copy(content, path)

    def _tar(self) -> None:
        with self.archive.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            with gzip.open(raw) if packed else raw as stream:
                # Read as a stream, with a limit on all bytes read, because headers can also be compression bombs.
                bounded = _Bounded(cast("IO[bytes]", stream), self.check_bytes)
                with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r|") as file:
                    while (member := file.next()) is not None:
                        if not (member.isreg() or member.isdir()):
                            raise self._refusal(f"{_short(member.name)} is a link or device")
                        path = self._place(member.name, is_folder=member.isdir())
                        content = file.extractfile(member)
                        if path and content:
                            self._copy(content, path)
                # Read to the end, where gzip has its checksum.
                while bounded.read(_CHUNK_BYTES):
                    pass

    def _place(self, name: str, *, is_folder: bool) -> Path | None:
        """The path of a member, whose parent folders are created; None for the root itself."""
        self.members += 1
        if self.members > self.max_members:
            raise self._refusal(f"it contains more than {self.max_members} members")
        if _bytes(name) > _MAX_NAME_BYTES:
            raise self._refusal(f"{_short(name)} is a name of more than {_MAX_NAME_BYTES} bytes")
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or any(mark in name for mark in "\\\0") or ":" in parts[0]:
            raise self._refusal(f"{_short(name)} leads outside the folder")
        parts = [part for part in parts if part not in ("", ".")]
        if len(parts) > _MAX_DEPTH:
            raise self._refusal(f"{_short(name)} lies more than {_MAX_DEPTH} folders deep")
        if any(_bytes(part) > _MAX_PART_BYTES for part in parts):
            raise self._refusal(f"{_short(name)} has a part of more than {_MAX_PART_BYTES} bytes")
        for end in range(1, len(parts) + 1):
            self._check_unique("/".join(parts[:end]), is_folder=is_folder or end < len(parts))
        path = self.root.joinpath(*parts)
        (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        return path if parts else None

    def _check_unique(self, name: str, *, is_folder: bool) -> None:
        """Raises FailedCheckError if another member has the same name."""
        key = name_key(name)
        if key not in self.seen:
            self._count(_ENTRY_BYTES)
        known = self.seen.setdefault(key, (is_folder, name, self.members))
        if known[1] != name:
            raise self._refusal(f"{_short(known[1])} and {_short(name)} are one name where case does not count")
        if known[0] != is_folder:
            raise self._refusal(f"{_short(name)} is both a file and a folder")
        if not is_folder and known[2] != self.members:
            raise self._refusal(f"{_short(name)} is in it twice")

    def _copy(self, content: IO[bytes], path: Path) -> None:
        with path.open("xb") as file:
            while chunk := content.read(_CHUNK_BYTES):
                self._count(len(chunk))
                file.write(chunk)
        self.files += 1

    def _count(self, size_bytes: int) -> None:
        self.written += size_bytes
        self.check_bytes(self.written)

    def check_bytes(self, count: int) -> None:
        """Raises FailedCheckError if `count` unpacked bytes are too many."""
        if count > self.max_bytes:
            raise self._refusal(f"more than {self.max_bytes} bytes come out of its {self.archive.stat().st_size}")

    def _refusal(self, reason: str) -> FailedCheckError:
        return FailedCheckError(f"{self.archive} was not unpacked: {reason}.")


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogateescape"))


def _short(name: str) -> str:
    return repr(name) if len(name) <= _SHOWN else f"{name[:_SHOWN]!r}..."


class _Bounded:
    """A stream that calls `check` with the number of bytes read so far."""

    def __init__(self, stream: IO[bytes], check: Callable[[int], None]) -> None:
        self._stream, self._check, self._bytes = stream, check, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._bytes += len(data)
        self._check(self._bytes)
        return data
