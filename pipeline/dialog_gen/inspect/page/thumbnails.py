"""Thumbnails that fit into the page's size limit."""

import io
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from dialog_gen.sources.images import UnreadableImage, decode_image


@dataclass(frozen=True, slots=True)
class Size:
    """The size of thumbnails: the longest side in pixels, and the WebP quality (0 to 100)."""

    side: int
    quality: int


SIZES = tuple(
    Size(*size)
    for size in (
        (640, 80), (480, 75), (320, 75), (320, 60), (256, 55), (192, 50), (144, 45), (96, 40), (64, 35)
    )
)  # fmt: skip
"""Sizes to try, the best first."""

_TINY, _TINY_QUALITY = 128, 95


def thumbnail(data: bytes) -> bytes | None:
    """A thumbnail of the best size, as WebP bytes; None for bytes that are not an image."""
    try:
        return _encode(decode_image(data), SIZES[0])
    except UnreadableImage:
        return None


def fit(thumbnails: Iterable[bytes], budget_bytes: int) -> tuple[list[bytes], Size] | None:
    """Makes all thumbnails smaller until their base64 text fits into the budget; returns them and their size.

    Returns None if even the smallest thumbnails do not fit.
    """
    made = list(thumbnails)
    for size in SIZES:
        if size is not SIZES[0]:
            made = [_encode(Image.open(io.BytesIO(data)), size) for data in made]
        if sum(-(-len(data) // 3) * 4 for data in made) <= budget_bytes:
            return made, size
    return None


def largest(thumbnails: Iterable[bytes], size: Size) -> Size:
    """The size that the largest of some thumbnails has; small images stay smaller than `size` allows."""
    side = max((max(Image.open(io.BytesIO(data)).size) for data in thumbnails), default=size.side)
    return Size(side, _TINY_QUALITY if size is SIZES[0] and side <= _TINY else size.quality)


def _encode(image: Image.Image, size: Size) -> bytes:
    image.thumbnail((size.side, size.side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # A tiny image is shown enlarged, and takes little space in any quality.
    quality = _TINY_QUALITY if size is SIZES[0] and max(image.size) <= _TINY else size.quality
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()
