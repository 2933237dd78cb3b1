"""Reads the lines of a list: any size, perhaps packed with gzip, in UTF-8, or in UTF-16 or UTF-32 with its mark.

The work and memory are bounded: a line has a maximum length, and a packed list a maximum size (`UnpackLimits`).
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import open_regular
from dialog_gen.download.list_notes import BAD_BYTES, ListNotes
from dialog_gen.download.unpack import DEFAULT_LIMITS

MAX_LINE_BYTES: Final = 4 << 20

_GZIP_MAGIC: Final = b"\x1f\x8b"
# UTF-32's mark begins with UTF-16's.
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEAD_BYTES: Final = 1 << 20
_FOREIGN_LINES: Final = 10
"""A list is in another encoding if its head has this many lines with bytes beyond ASCII, and none of them is UTF-8."""

Line = tuple[int, str | None]
"""Number of a line, counted from 1, and its text with the line feed; None for a line over `MAX_LINE_BYTES`."""


@contextmanager
def list_lines(path: Path, notes: ListNotes, *, header: bool) -> Generator[Iterator[Line], None, None]:
    """Opens a list and yields its lines, which end with a line feed; a carriage return alone does not end a line.

    Invalid bytes become U+FFFD and are noted, but not in the first line if it is a `header`.

    Raises UsageError for a file that is not regular, cannot be read, is in another encoding, or unpacks to too much.
    """
    try:
        with open_regular(path) as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            with gzip.open(raw) if packed else raw as file:
                readline = _readline(file)
                yield _decoded(_raw_lines(_bounded(readline, path) if packed else readline), path, notes, header)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is damaged: {error}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is damaged: its {error.encoding} text breaks off or is not valid.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def _readline(file: io.BufferedReader | gzip.GzipFile) -> Callable[[int], bytes]:
    """A function that returns the next line in UTF-8, or its next piece of the given size if it is longer."""
    head = file.peek(4)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding is None:
        return file.readline
    # Lone surrogates pass, and are replaced and counted like any bytes that are not UTF-8.
    text = io.TextIOWrapper(file, encoding, "surrogatepass", newline="\n")
    return lambda size: text.readline(size).encode("utf-8", "surrogatepass")


def _bounded(readline: Callable[[int], bytes], path: Path) -> Callable[[int], bytes]:
    """`readline`, but it raises UsageError when it has returned more than any list would contain."""
    left = most = DEFAULT_LIMITS.bytes_of(path)

    def read(size: int) -> bytes:
        nonlocal left
        line = readline(size)
        left -= len(line)
        if left < 0:
            raise UsageError(
                f"{path} unpacks to more than {most} bytes, {DEFAULT_LIMITS.max_ratio:g} times its size: if that is "
                "right, unpack it first."
            )
        return line

    return read


def _raw_lines(readline: Callable[[int], bytes]) -> Iterator[bytes | None]:
    """The lines; None for one that is too long."""
    while line := readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _decoded(lines: Iterator[bytes | None], path: Path, notes: ListNotes, header: bool) -> Iterator[Line]:
    encoding = _EncodingCheck(path)
    for number, raw in enumerate(lines, 1):
        if raw is None:
            yield number, None
            continue
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
            if b"\0" in raw:
                raise UsageError(
                    f"{path}, line 1: the byte 0x00 does not occur in text. If it is UTF-16, convert it to UTF-8."
                )
        try:
            text = raw.decode()
            encoding.count(raw)
        except UnicodeDecodeError as error:
            place = f"line {number}: byte 0x{raw[error.start]:02x}"
            if header and number == 1:
                raise UsageError(f"{path}, {place} is not UTF-8: convert the list to UTF-8.") from None
            notes.add(BAD_BYTES, path, place)
            encoding.count(raw, place)
            text = raw.decode("utf-8", "replace")
        yield number, text
    encoding.end()


class _EncodingCheck:
    """Distinguishes a list in another encoding, which is an error, from damaged characters in single rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = _HEAD_BYTES
        self._valid = self._invalid = 0
        self._first: str | None = None

    def count(self, raw: bytes, invalid: str | None = None) -> None:
        """Counts a line; `invalid` is the place of its first byte that is not UTF-8."""
        if self._left <= 0:
            return
        if invalid is not None:
            self._invalid += 1
            self._first = self._first or invalid
        elif not raw.isascii():
            self._valid += 1
        self._left -= len(raw)
        if self._left <= 0:
            self.end()

    def end(self) -> None:
        """Raises UsageError if the head is in another encoding."""
        if self._invalid >= _FOREIGN_LINES and not self._valid:
            raise UsageError(
                f"{self._path}, {self._first} is not UTF-8, and {self._invalid} lines have such bytes: the list is in "
                "another encoding. Convert it to UTF-8, such as with `iconv -f latin1 -t utf-8`."
            )
