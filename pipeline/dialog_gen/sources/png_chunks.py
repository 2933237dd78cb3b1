"""Texts and colour profiles in PNG files. Pillow refuses a whole image because of one that unpacks to over 1 MB."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_BYTES_KEPT: Final = 1 << 20


def is_refused_for_texts(error: BaseException) -> bool:
    """Whether it is Pillow's error for a PNG with too much text."""
    return isinstance(error, ValueError) and "MAX_TEXT_" in str(error)


def without_large_texts(data: bytes) -> bytes:
    """The same PNG without its colour profile, and with texts of at most 1 MB in all; the pixels are the same.

    Texts stay in order as far as they fit, because a small one can contain the orientation. At most 1 MB is unpacked
    at a time. Data that is not a PNG is returned unchanged.
    """
    if not data.startswith(_SIGNATURE):
        return data
    kept, left = [_SIGNATURE], _BYTES_KEPT
    for kind, chunk in _chunks(data):
        if kind == b"iCCP":
            continue
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            size = _unpacked_size(kind, chunk[8:-4], left)
            if size > left:
                continue
            left -= size
        kept.append(chunk)
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The type of each chunk, and the whole chunk; the last one may be cut short."""
    at = len(_SIGNATURE)
    while at < len(data):
        header = data[at : at + 8]
        length = struct.unpack(">I", header[:4])[0] if len(header) == 8 else 0
        yield header[4:], data[at : at + length + 12]
        at += length + 12


def _unpacked_size(kind: bytes, content: bytes, limit: int) -> int:
    """The size of a text in bytes when unpacked; more than `limit` if it is larger than that."""
    packed = b""
    if kind == b"zTXt":
        packed = content.partition(b"\0")[2][1:]
    elif kind == b"iTXt":
        after_keyword = content.partition(b"\0")[2]
        if after_keyword[:1] == b"\1":
            packed = after_keyword[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not packed:
        return len(content)
    try:
        return len(zlib.decompressobj().decompress(packed, limit + 1))
    except zlib.error:
        return len(content)  # Pillow takes it for an empty text
