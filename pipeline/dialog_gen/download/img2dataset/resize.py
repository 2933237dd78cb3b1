"""What is done to a downloaded image: its header is checked, then img2dataset's resizer makes the stored JPEG of it.

The same source bytes give the same stored bytes wherever this is used with the same version of img2dataset.
"""

import os
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from PIL import Image, UnidentifiedImageError

from dialog_gen.download.outcomes import FetchError
from dialog_gen.sources.images import DEFAULT_MAX_PIXELS, FORMATS, UnreadableImage, decode_image, is_plain

IMAGE_SIZE_PX: Final = 336
"""The shorter side of a stored image; smaller images keep their size."""

MAX_PIXELS: Final = DEFAULT_MAX_PIXELS
"""An image whose header announces more is not decoded."""

TRANSPARENCY_FACTOR: Final = 4
"""Weight of a pixel with an alpha channel: blending it on white takes about 70 bytes."""

RESIZE: Final[dict[str, Any]] = {
    "image_size": IMAGE_SIZE_PX,
    "resize_mode": "keep_ratio",
    "resize_only_if_bigger": True,
    "downscale_interpolation": "area",
    "encode_format": "jpg",
    "encode_quality": 95,
}
"""Arguments that `img2dataset.download` and `img2dataset.resizer.Resizer` share."""


def check_header(data: bytes) -> None:
    """Raises FetchError unless the header is that of an image small enough to decode; decodes nothing."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            cost = image.width * image.height * (TRANSPARENCY_FACTOR if image.has_transparency_data else 1)
            if cost > MAX_PIXELS:
                raise FetchError("too_many_pixels", f"{image.width} x {image.height}")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FetchError("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise FetchError("not_an_image", f"{len(data)} bytes that begin with {data[:16]!r}") from None
    except FetchError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise anything on a damaged header
        raise FetchError("decode_error", f"{type(error).__name__}: {error}") from None


class PlainResizer:
    """img2dataset's Resizer, which is given upright images of 8 bits only.

    The Resizer takes pixels as they are stored: it ignores an EXIF orientation, and cuts 16 bits or floats off at 255,
    which leaves a white or black image.
    """

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, stream: BytesIO, *others: Any) -> Any:
        """The resizer's result for the stream of an image file's bytes."""
        return self._resizer(_plain(stream), *others)


def resizer() -> Any:
    """The function with which a download resizes, made of img2dataset's Resizer.

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
    # An unreadable image becomes an empty stream, which the resizer refuses: its pixels would be wrong.
    with suppress(UnreadableImage):
        decode_image(data).save(plain, "PNG", compress_level=1)
    plain.seek(0)
    return plain
