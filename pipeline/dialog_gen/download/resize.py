"""How a downloaded image is stored: what img2dataset's resizer is told, in one place.

The same source bytes give the same stored bytes wherever this is used with the same version of img2dataset.
"""

import os
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from dialog_gen.sources.images import DEFAULT_MAX_PIXELS, UnreadableImage, decode_image, is_plain

IMAGE_SIZE_PX: Final = 336
"""The shorter side of a stored image; smaller images keep their size."""

MAX_PIXELS: Final = DEFAULT_MAX_PIXELS
"""An image whose header announces more is not decoded."""

TRANSPARENCY_FACTOR: Final = 4
"""A pixel with an alpha channel counts so many times: blending it on white takes about 70 bytes."""

RESIZE: Final[dict[str, Any]] = {
    "image_size": IMAGE_SIZE_PX,
    "resize_mode": "keep_ratio",
    "resize_only_if_bigger": True,
    "downscale_interpolation": "area",
    "encode_format": "jpg",
    "encode_quality": 95,
}
"""Arguments that `img2dataset.download` and `img2dataset.resizer.Resizer` share."""


class PlainResizer:
    """img2dataset's Resizer, given nothing but images of upright 8-bit pixels.

    It takes samples as they are stored: without this, what lies on its side but for its EXIF data would stay so, and
    16 bits or floats would be cut off at 255, which leaves a white or black image.
    """

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, stream: BytesIO, *others: Any) -> Any:
        """See `resizer`."""
        return self._resizer(_plain(stream), *others)


def resizer() -> Any:
    """What a download resizes with, made of img2dataset's Resizer.

    It maps a stream of an image file's bytes to (JPEG bytes, width, height, original width, original height, error).
    """
    # A dependency of img2dataset would look for updates of itself.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.resizer import Resizer

    return PlainResizer(Resizer(**RESIZE))


def _plain(stream: BytesIO) -> BytesIO:
    data = stream.getvalue()
    if is_plain(data):
        return stream
    plain = BytesIO()
    # What cannot be read stays empty, an error to the resizer: whatever it made of these samples would be wrong.
    with suppress(UnreadableImage):
        decode_image(data).save(plain, "PNG", compress_level=1)
    plain.seek(0)
    return plain
