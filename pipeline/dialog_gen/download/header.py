"""Looks at the header of what was downloaded, before anything decodes it."""

from io import BytesIO

from PIL import Image, UnidentifiedImageError

from dialog_gen.download.errors import FetchError
from dialog_gen.download.resize import MAX_PIXELS, TRANSPARENCY_FACTOR
from dialog_gen.sources.images import FORMATS


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
