"""Processes a downloaded image: checks its header, then img2dataset's resizer makes the JPEG that is stored.

With the same version of img2dataset, the same source bytes always give the same stored bytes.
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
"""An image with more pixels, according to its header, is not decoded."""

TRANSPARENCY_FACTOR: Final = 4
"""A pixel of an image with transparency counts as this many: blending it on white takes about 70 bytes."""

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
    """Raises FetchError unless the header is that of an image small enough to decode. Decodes no pixels."""
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
    """Calls img2dataset's Resizer with upright 8-bit images only.

    The Resizer uses pixels as they are stored: it ignores an EXIF orientation, and clips 16-bit and float pixels at
    255, which gives a white or black image.
    """

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, stream: BytesIO, *others: Any) -> Any:
        """The result of the resizer for a stream of an image file's bytes."""
        return self._resizer(_plain(stream), *others)


def resizer() -> Any:
    """The function that a download uses to resize images, based on img2dataset's Resizer.

    It maps a stream of an image file's bytes to (JPEG bytes, width, height, original width, original height, error).
    """
    # Otherwise a dependency of img2dataset would look for updates over the network.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.resizer import Resizer

    return PlainResizer(Resizer(**RESIZE))


def _plain(stream: BytesIO) -> BytesIO:
    data = stream.getvalue()
    if is_plain(data):
        return stream
    plain = BytesIO()
    # An unreadable image becomes an empty stream, which the resizer refuses. Its own decoder might give wrong pixels.
    with suppress(UnreadableImage):
        decode_image(data).save(plain, "PNG", compress_level=1)
    plain.seek(0)
    return plain
