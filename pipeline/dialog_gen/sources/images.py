"""Decodes image bytes to 8-bit RGB, or says why that is not possible.

Reasons of `UnreadableImage` (`UNREADABLE_REASONS`):

empty_file      there are no bytes
missing_file    there are no bytes, but the source names a file, which cannot be read
not_an_image    no usable header of a supported format: a web page with the name of an image, random bytes, zero width
truncated       the file ends before the end of its pixels
too_large       the header announces more pixels than allowed; nothing was decoded
decode_error    the header is valid, the rest is not

Texts and colour profiles in a PNG of more than 1 MB (unpacked) are skipped: an image never needs more memory for them.
"""

import re
import warnings
from io import BytesIO
from typing import Final, Literal, get_args

import numpy as np
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError
from pillow_heif import register_heif_opener

from dialog_gen.sources.png_chunks import is_refused_for_texts, without_large_texts

Reason = Literal["empty_file", "missing_file", "not_an_image", "truncated", "too_large", "decode_error"]
UNREADABLE_REASONS: Final[tuple[str, ...]] = get_args(Reason)

_ENDINGS: Final = {
    # Many phones write MPO: a JPEG that is followed by another one.
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "AVIF": ("avif", "avifs"),
    "HEIF": ("heic", "heif", "hif", "heics", "heifs"),
}
FORMATS: Final = tuple(_ENDINGS)
"""Supported formats, by Pillow's names."""
IMAGE_EXTENSIONS: Final = tuple(ending for endings in _ENDINGS.values() for ending in endings)
"""File extensions of these formats, in lower case."""

# Above this number Pillow warns (decoded, this is about 360 MB); above twice this number it raises an error.
DEFAULT_MAX_PIXELS: Final = 89_478_485

_ORIENTATION_TAG = 274
# EXIF data, and XMP data, which PNGs may compress. Not all formats spell them alike.
_ORIENTATION_MARKS = (b"Exif", b"eXIf", b"EXIF", b"type exif", b"tiff:Orientation", b"XML:com.adobe.xmp")
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

# Registers all formats now, in one thread: otherwise Pillow does it at the first use, without a lock.
Image.init()
register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


class UnreadableImage(Exception):  # noqa: N818 - an outcome that is counted, not a fault of the program
    """The bytes are no usable image. `reason` is one of `UNREADABLE_REASONS`, `detail` is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def decode_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes the first frame of an image to 8-bit RGB: upright, with transparent parts on white.

    Samples of more than 8 bits are scaled down, not clipped. Thread-safe. Switches off Pillow's process-wide
    `LOAD_TRUNCATED_IMAGES`, with which half an image would count as a whole one.

    Raises UnreadableImage, and no other error, if the data cannot be decoded.
    """
    if not data:
        raise UnreadableImage("empty_file", "0 bytes")
    _silence_pillow()
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        try:
            return _decoded(data, max_pixels)
        except ValueError as error:
            if not is_refused_for_texts(error):
                raise
        return _decoded(without_large_texts(data), max_pixels)
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


def _decoded(data: bytes, max_pixels: int) -> Image.Image:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise UnreadableImage("too_large", f"{image.width} x {image.height} is over {max_pixels} pixels")
        image.load()
        rgb = _upright(_to_rgb(image), image)
    # Otherwise a later reader would find the old orientation there and rotate the image again.
    rgb.info.clear()
    return rgb


def pixels_of(data: bytes) -> int:
    """The number of pixels that `decode_image` will decode, from the image's header; 0 if it refuses the header."""
    _silence_pillow()
    try:
        try:
            pixels = _pixels_of(data)
        except ValueError as error:
            if not is_refused_for_texts(error):
                raise
            pixels = _pixels_of(without_large_texts(data))
    except Exception:  # noqa: BLE001 - `decode_image` will say what is wrong
        return 0
    return pixels if pixels <= DEFAULT_MAX_PIXELS else 0


def _pixels_of(data: bytes) -> int:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        return image.width * image.height


def is_plain(data: bytes) -> bool:
    """Whether any decoder shows the file as `decode_image` does; decodes no pixels.

    This is so if the image is stored upright, with at most 8 bits per sample, is not a CMYK JPEG without Adobe's
    marker, and is neither AVIF nor HEIF, which many decoders do not know. True for a file that is not an image.
    """
    try:
        return _is_plain(data)
    except ValueError as error:
        return not is_refused_for_texts(error) or _is_plain(without_large_texts(data))
    except Exception:  # noqa: BLE001 - whoever decodes the file will report what is wrong
        return True


def _is_plain(data: bytes) -> bool:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        # Most files have no such data. A search for the marks is cheap, while Pillow decodes a whole PNG to know.
        is_turned = any(mark in data for mark in _ORIENTATION_MARKS) and _orientation(image) in _UPRIGHT
        return not (is_turned or _is_deep(image) or _is_plain_cmyk(image) or image.format in ("AVIF", "HEIF"))


def _silence_pillow() -> None:
    # One filter for the whole process, because catch_warnings replaces the filters of all threads. It is added again
    # only if another filter comes before it.
    if not warnings.filters or warnings.filters[0] != _SILENT_PIL:
        warnings.filterwarnings("ignore", module=_PIL_MODULES)


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
    """Whether it is a CMYK JPEG whose values are not inverted. Decoders invert all CMYK JPEGs, as Adobe's need it."""
    return image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether the value of white is not 255: samples of 16 bits or more, floats, a PPM with its own maximum."""
    # Pillow has no mode for 16-bit colour: only the decoder's name or arguments show the size of the samples.
    return image.mode[0] in "IF" or any(";16" in str(tile) or tile[0].startswith("ppm") for tile in image.tile)


def _to_8_bit(image: ImageFile.ImageFile) -> np.ndarray:
    """Scales values so that white becomes 255. Floats: white is the smallest of 1, 255, 65535 that fits all values."""
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
