"""Images of many kinds as bytes: those that must be read, with their size and pixels, and those that must not."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

register_heif_opener()
WHITE, BLACK, RED, GREEN, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(size: tuple[int, int] = (256, 192)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def plain_cmyk_jpeg(cmyk: tuple[int, int, int, int]) -> bytes:
    """Without Adobe's marker the samples are what they say; Pillow writes the inverse, with the marker."""
    inverse = tuple(255 - value for value in cmyk)
    data = encode(Image.new("CMYK", (16, 16), inverse), "JPEG", quality=100)
    at = data.index(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def palette_png(alpha: bytes) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    return encode(image, "PNG", transparency=alpha)


def heic(image: Image.Image) -> bytes:
    return encode(image, "HEIF", quality=100, chroma=444)


def zipped_text(size: int) -> bytes:
    return chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(size)))


ORIENTATION_8 = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="8"/>')


def with_chunks(*chunks: bytes, after: bytes = b"") -> bytes:
    """A PNG of a red and a blue pixel with more chunks before and after the pixels."""
    data = png(2, 1, b"\0" + bytes([*RED, *BLUE]))
    start, pixels, end = data[:33], data[33:-12], data[-12:]
    return start + b"".join(chunks) + pixels + after + end


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


def rotated(orientation: int, kind: str = "PNG") -> bytes:
    """Left red, right blue as stored."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[274] = orientation
    return encode(image, kind, exif=exif.tobytes(), **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


def floats(*values: float) -> bytes:
    return encode(Image.fromarray(np.array([values], np.float32)), "TIFF")


def ramp16(kind: str, *values: int) -> bytes:
    return encode(Image.fromarray(np.array([values], np.uint16)), kind)


def bits(kind: str) -> bytes:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    return encode(image, kind)


def grey(*levels: int) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(i, 0): (level,) * 3 for i, level in enumerate(levels)}


GOOD = {
    "rgb png": (png(2, 1, b"\0" + bytes([*RED, *BLUE])), (2, 1), {(0, 0): RED, (1, 0): BLUE}),
    "grey jpeg": (encode(Image.new("L", (8, 8), 90), "JPEG", quality=100), (8, 8), {(3, 3): (90, 90, 90)}),
    "rgb jpeg": (encode(Image.new("RGB", (8, 8), (200, 30, 60)), "JPEG", quality=100), (8, 8), {(3, 3): (200, 30, 60)}),
    "adobe cmyk jpeg": (
        encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100),
        (16, 16),
        {(8, 8): RED},
    ),
    "plain cmyk jpeg": (plain_cmyk_jpeg((0, 255, 255, 0)), (16, 16), {(8, 8): RED}),
    "cmyk tiff": (encode(Image.new("CMYK", (4, 4), (255, 0, 255, 0)), "TIFF"), (4, 4), {(1, 1): GREEN}),
    "16 bit png": (
        png(4, 1, b"\0" + struct.pack(">4H", 0, 257, 32896, 65535), depth=16, colour=0),
        (4, 1),
        grey(0, 1, 128, 255),
    ),
    "16 bit rgb png": (
        png(1, 1, b"\0" + struct.pack(">3H", 65535, 32896, 0), depth=16),
        (1, 1),
        {(0, 0): (255, 128, 0)},
    ),
    "16 bit tiff": (ramp16("TIFF", 0, 25700, 65535), (3, 1), grey(0, 100, 255)),
    "16 bit pgm": (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 25700, 65535), (3, 1), grey(0, 100, 255)),
    "palette, one entry clear": (palette_png(b"\xff\x00"), (2, 1), {(0, 0): RED, (1, 0): WHITE}),
    "palette, half clear": (palette_png(b"\xff\x80"), (2, 1), {(0, 0): RED, (1, 0): (127, 127, 255)}),
    "rgba": (encode(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG"), (2, 2), {(0, 0): WHITE}),
    "rgba half": (encode(Image.new("RGBA", (2, 2), (255, 0, 0, 51)), "PNG"), (2, 2), {(0, 0): (255, 204, 204)}),
    "rgba webp": (
        encode(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "WEBP", lossless=True, exact=True),
        (4, 4),
        {(1, 1): WHITE},
    ),
    "la": (encode(Image.new("LA", (2, 2), (0, 51)), "PNG"), (2, 2), {(0, 0): (204, 204, 204)}),
    "rgb with a clear colour": (
        encode(Image.new("RGB", (2, 2), BLUE), "PNG", transparency=BLUE),
        (2, 2),
        {(0, 0): WHITE},
    ),
    "animated gif": (animation("GIF"), (8, 8), {(4, 4): RED}),
    "animated webp": (animation("WEBP"), (8, 8), {(4, 4): RED}),
    "1 bit png": (bits("PNG"), (2, 1), grey(0, 255)),
    "1 bit tiff": (bits("TIFF"), (2, 1), grey(0, 255)),
    "bmp": (encode(Image.new("RGB", (3, 3), GREEN), "BMP"), (3, 3), {(2, 2): GREEN}),
    "ppm": (b"P6 1 1 255\n\x00\xff\x00", (1, 1), {(0, 0): GREEN}),
    "float tiff 0 to 1": (floats(0.0, 0.2, 1.0), (3, 1), grey(0, 51, 255)),
    "float tiff 0 to 255": (floats(-5.0, 100.0, 255.0), (3, 1), grey(0, 100, 255)),
    "float tiff beyond": (floats(float("nan"), 100_000.0, 200_000.0), (3, 1), grey(0, 128, 255)),
    "upright": (rotated(1), (32, 16), {(4, 8): RED, (28, 8): BLUE}),
    "rotated 180": (rotated(3), (32, 16), {(4, 8): BLUE, (28, 8): RED}),
    "rotated 90": (rotated(6), (16, 32), {(8, 4): RED, (8, 28): BLUE}),
    "rotated 270": (rotated(8), (16, 32), {(8, 4): BLUE, (8, 28): RED}),
    "rotated jpeg": (rotated(8, "JPEG"), (16, 32), {(8, 4): BLUE, (8, 28): RED}),
    "rotated tiff": (rotated(8, "TIFF"), (16, 32), {(8, 4): BLUE, (8, 28): RED}),
    "rotated webp": (rotated(3, "WEBP"), (32, 16), {(4, 8): BLUE, (28, 8): RED}),
    "avif": (encode(Image.new("RGB", (8, 8), (200, 30, 60)), "AVIF", quality=100), (8, 8), {(3, 3): (200, 30, 60)}),
    "heic": (heic(Image.new("RGB", (8, 8), (200, 30, 60))), (8, 8), {(3, 3): (200, 30, 60)}),
    "rgba avif": (encode(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "AVIF", quality=100), (8, 8), {(1, 1): WHITE}),
    "rotated avif": (rotated(8, "AVIF"), (16, 32), {(8, 4): BLUE, (8, 28): RED}),
    "rotated heic": (rotated(8, "HEIF"), (16, 32), {(8, 4): BLUE, (8, 28): RED}),
    "png with 3 MB of text": (with_chunks(zipped_text(3 << 20)), (2, 1), {(0, 0): RED, (1, 0): BLUE}),
    "png with 80 MB of text": (with_chunks(*[zipped_text(1 << 20)] * 80), (2, 1), {(0, 0): RED, (1, 0): BLUE}),
    "png with 100 MB of text at once": (with_chunks(zipped_text(100 << 20)), (2, 1), {(0, 0): RED}),
    "png with a profile of 2 MB": (
        with_chunks(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20)))),
        (2, 1),
        {(0, 0): RED},
    ),
    "png with text after its pixels": (with_chunks(after=zipped_text(3 << 20)), (2, 1), {(0, 0): RED}),
    "rotated png with 3 MB of text": (with_chunks(zipped_text(3 << 20), ORIENTATION_8), (1, 2), {(0, 0): BLUE}),
    "broken exif": (
        encode(Image.new("RGB", (8, 8), RED), "PNG", exif=b"MM\x00\x2a\xff\xff\xff"),
        (8, 8),
        {(1, 1): RED},
    ),
}

BAD = {
    "zero bytes": (b"", "empty_file"),
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image"),
    "random bytes": (np.random.default_rng(1).bytes(5000), "not_an_image"),
    "zero bytes inside": (bytes(4096), "not_an_image"),
    "zero width": (png(0, 10), "not_an_image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not_an_image"),
    "another format": (encode(photo(), "TGA"), "not_an_image"),
    "truncated jpeg": (encode(photo(), "JPEG")[:-4000], "truncated"),
    "truncated progressive jpeg": (encode(photo(), "JPEG", progressive=True)[:-2000], "truncated"),
    "jpeg without its end": (encode(photo(), "JPEG")[:-2], "truncated"),
    "truncated png": (encode(photo(), "PNG")[:-5000], "truncated"),
    "truncated bmp": (encode(photo(), "BMP")[:-5000], "truncated"),
    "truncated ppm": (encode(photo(), "PPM")[:-5000], "truncated"),
    "truncated gif": (encode(photo(), "GIF")[:-5000], "truncated"),
    "truncated webp": (encode(photo(), "WEBP")[:-2000], None),
    "truncated tiff": (encode(photo(), "TIFF")[:-5000], None),
    "truncated deflate tiff": (encode(photo(), "TIFF", compression="tiff_deflate")[:50_000], None),
    "png with bad pixels": (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"not zlib at all" * 20)
        + chunk(b"IEND", b""),
        "decode_error",
    ),
    "png bomb": (png(40_000, 40_000), "too_large"),
    "gif bomb": (
        b"GIF89a" + struct.pack("<HHBBB", 40_000, 40_000, 0, 0, 0) + b",\0\0\0\0\x40\x9c\x40\x9c\0\x08",
        "too_large",
    ),
    "ppm bomb": (b"P6 40000 40000 255\n" + bytes(64), "too_large"),
    "bmp over the warning": (
        encode(photo(), "BMP").replace(struct.pack("<ii", 256, 192), struct.pack("<ii", 10**4, 10**4)),
        "too_large",
    ),
}
