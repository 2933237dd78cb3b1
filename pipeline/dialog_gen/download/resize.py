"""How a downloaded image is stored: what img2dataset's resizer is told, in one place.

The same source bytes give the same stored bytes wherever this is used with the same version of img2dataset.
"""

import os
from io import BytesIO
from typing import Any, Final

from dialog_gen.images import DEFAULT_MAX_PIXELS, UnreadableImage, decode_image, is_turned

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


class UprightResizer:
    """img2dataset's Resizer, for images that lie on their side but for what their EXIF data says.

    It reads pixels as they are stored and writes none of that data: without this, such images would stay so.
    """

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, stream: BytesIO, *others: Any) -> Any:
        """See `resizer`."""
        return self._resizer(_upright(stream), *others)


def resizer() -> Any:
    """What a download resizes with, made of img2dataset's Resizer.

    It maps a stream of an image file's bytes to (JPEG bytes, width, height, original width, original height, error).
    """
    # A dependency of img2dataset would look for updates of itself.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.resizer import Resizer

    return UprightResizer(Resizer(**RESIZE))


def _upright(stream: BytesIO) -> BytesIO:
    data = stream.getvalue()
    if not is_turned(data):
        return stream
    try:
        image = decode_image(data)
    except UnreadableImage:
        return stream
    turned = BytesIO()
    image.save(turned, "PNG", compress_level=1)
    turned.seek(0)
    return turned
