"""How a downloaded image is stored: what img2dataset's resizer is told, in one place.

The same source bytes give the same stored bytes wherever this is used with the same version of img2dataset.
"""

import os
from typing import Any, Final

from dialog_gen.images import DEFAULT_MAX_PIXELS

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


def resizer() -> Any:
    """img2dataset's Resizer as a download uses it.

    It maps a stream of an image file's bytes to (JPEG bytes, width, height, original width, original height, error).
    """
    # A dependency of img2dataset would look for updates of itself.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.resizer import Resizer

    return Resizer(**RESIZE)
