"""Decodes image bytes to 8-bit RGB, or tells why that is not possible.

Reasons of `UnreadableImage` (`UNREADABLE_REASONS`):

empty_file      there are no bytes
not_an_image    no usable header of a supported format: a web page under an image's name, random bytes, zero width
truncated       the file ends before its pixels do
too_large       the header announces more pixels than allowed; nothing was decoded
decode_error    the header is good, the rest is not
"""

import re
import warnings
from io import BytesIO
from typing import Final, Literal, get_args

import numpy as np
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

Reason = Literal["empty_file", "not_an_image", "truncated", "too_large", "decode_error"]
UNREADABLE_REASONS: Final[tuple[str, ...]] = get_args(Reason)

_ENDINGS: Final = {
    # Many phones write MPO: a JPEG with another behind it.
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
}
FORMATS: Final = tuple(_ENDINGS)
"""Supported formats, by Pillow's names."""
IMAGE_EXTENSIONS: Final = tuple(ending for endings in _ENDINGS.values() for ending in endings)
"""File extensions of these formats, in lower case."""

# Pillow warns from here on: about 360 MB decoded. It always refuses twice as many.
DEFAULT_MAX_PIXELS: Final = 89_478_485

_ORIENTATION_TAG = 274
_BITS_PER_SAMPLE_TAG = 258
_SAMPLE_FORMAT_TAG = 339
_SIGNED = 2
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PIL_MODULES = r"PIL\b"
_SILENT_PIL = ("ignore", None, Warning, re.compile(_PIL_MODULES), 0)

# Registers every format now, in one thread: Pillow does it at the first use, without a lock.
Image.init()


class UnreadableImage(Exception):  # noqa: N818 - an outcome that is counted, not a fault of the program
    """The bytes are no usable image. `reason` is one of `UNREADABLE_REASONS`, `detail` is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """The first frame of an image as a loaded 8-bit RGB image: upright, and on white where it was transparent.

    Samples of more than 8 bits are scaled down, not clipped. Safe to call from many threads. Pillow's process-wide
    `LOAD_TRUNCATED_IMAGES` is switched off: it would let half an image pass for a whole one.

    Raises `UnreadableImage`, and nothing else, for data that is not such an image.
    """
    if not data:
        raise UnreadableImage("empty_file", "0 bytes")
    # One filter for the process, put in front again only if something else got there: catch_warnings swaps the filters
    # under the feet of other threads.
    if not warnings.filters or warnings.filters[0] != _SILENT_PIL:
        warnings.filterwarnings("ignore", module=_PIL_MODULES)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UnreadableImage("too_large", f"{image.width} x {image.height} is over {max_pixels} pixels")
            image.load()
            rgb = _upright(_to_rgb(image), image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("not_an_image", f"{len(data)} bytes that begin with {data[:16]!r}") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too_large", str(error)) from None
    except Exception as error:  # decoders raise anything on corrupt data: SyntaxError, MemoryError, ...
        truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
        reason = "truncated" if truncated else "decode_error"
        raise UnreadableImage(reason, f"{type(error).__name__}: {error}") from error
    # The next reader would find the old orientation there and turn the image a second time.
    rgb.info.clear()
    return rgb


def is_plain(data: bytes) -> bool:
    """Whether the samples as a file stores them are the image: upright, 8 bits each at most, of the usual meaning.

    Of other files only `decode_image` knows what is to be seen. Decodes nothing.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            # Most have no EXIF data: that is told by a look, as Pillow decodes a PNG to be sure.
            is_turned = any(mark in data for mark in (b"Exif", b"eXIf", b"EXIF")) and _orientation(image) in _UPRIGHT
            return not (is_turned or _is_deep(image) or _is_plain_cmyk(image))
    except Exception:  # noqa: BLE001 - what is wrong with it, whoever decodes it finds
        return True


def _to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if image.has_transparency_data:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        return on_white.convert("RGB")
    if _is_plain_cmyk(image):
        return ImageChops.invert(image).convert("RGB")
    return image.convert("RGB")


def _is_plain_cmyk(image: ImageFile.ImageFile) -> bool:
    """Decoders take every CMYK JPEG for an inverted one; only Adobe's, which carry its marker, are."""
    return image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether white is not 255: samples of 16 bits or more, floats, a PPM with a white of its own."""
    # Pillow has no mode for 16-bit colour: the samples' size then stands in the decoder's name or arguments alone.
    return image.mode[0] in "IF" or any(";16" in str(tile) or tile[0].startswith("ppm") for tile in image.tile)


def _to_8_bit(image: ImageFile.ImageFile) -> np.ndarray:
    """Scale by the white of the file's sample type; of floats, by the least usual white that holds them all."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0, posinf=0, neginf=0)
    if image.mode == "F":
        brightest = float(values.max())
        white = next((usual for usual in (1, 255, 65535) if brightest <= usual), brightest)
    else:
        tags = getattr(image, "tag_v2", {})
        bits = int(tags.get(_BITS_PER_SAMPLE_TAG, (16,))[0])
        white = 2 ** (bits - (_SIGNED in tags.get(_SAMPLE_FORMAT_TAG, ()))) - 1
    return np.clip(values * (255 / white), 0, 255).round().astype(np.uint8)


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    method = _UPRIGHT.get(_orientation(original))
    return rgb if method is None else rgb.transpose(method)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - broken metadata of any kind; the pixels are good
        return 1
