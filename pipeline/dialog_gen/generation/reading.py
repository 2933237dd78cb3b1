"""Reads images from a source in small batches, and decodes them. Both are slow, so they run in a thread."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from dialog_gen.core.hashing import sha256_images
from dialog_gen.generation.memory import DECODING_PIXEL_BYTES, PIXEL_BYTES
from dialog_gen.sources.base import SourceImage, StoredImage
from dialog_gen.sources.images import UnreadableImage, decode_image, pixels_of
from dialog_gen.sources.pixels import UNLIMITED, PixelLimits

_IMAGES_AT_ONCE = 16


@dataclass(slots=True)
class ReadImage:
    """An image, or the images of a sample, on the way to the engine."""

    source: SourceImage
    pixels: tuple[int, ...]
    """Of each image, from its header, before it is decoded; 0 if it will not be decoded."""
    sha256: str = ""
    images: tuple[Image.Image, ...] | UnreadableImage | None = None
    """None before they are decoded, and after their dialogue; why the first bad one cannot be read."""

    @property
    def encoded_bytes(self) -> int:
        """The size as stored."""
        return sum(len(image.data) for image in self.source.images)

    @property
    def decoded_bytes(self) -> int:
        """The size of the decoded images."""
        return PIXEL_BYTES * sum(self.pixels)


def read_batch(sources: Iterator[SourceImage], max_bytes: int) -> list[ReadImage]:
    """Reads up to 16 images, fewer if they take `max_bytes` together when decoded; the last may exceed that."""
    batch, size = list[ReadImage](), 0
    while len(batch) < _IMAGES_AT_ONCE and size < max_bytes and (source := next(sources, None)):
        batch.append(ReadImage(source, tuple(pixels_of(image.data) for image in source.images)))
        size += batch[-1].encoded_bytes + batch[-1].decoded_bytes
    return batch


def decoding_bytes(batch: list[ReadImage]) -> int:
    """The memory that decoding the batch, one image after another, needs in addition to what it returns."""
    return DECODING_PIXEL_BYTES * max(max(read.pixels) for read in batch)


def decode_batch(batch: list[ReadImage], limits: PixelLimits = UNLIMITED) -> None:
    """Decodes and hashes each image of the batch, and brings its pixels within the limits."""
    for read in batch:
        read.sha256 = sha256_images([image.data for image in read.source.images])
        try:
            read.images = decoded_images(read.source, limits)
        except UnreadableImage as unreadable:
            read.images = unreadable


def decoded_images(source: SourceImage, limits: PixelLimits = UNLIMITED) -> tuple[Image.Image, ...]:
    """The images of a sample, within the limits. Raises UnreadableImage for the first that cannot be read."""
    return tuple(
        _decoded(image, number if source.more else None, limits) for number, image in enumerate(source.images, 1)
    )


def _decoded(image: StoredImage, number: int | None, limits: PixelLimits) -> Image.Image:
    try:
        if image.missing is not None:
            raise UnreadableImage("missing_file", image.missing)
        return limits.fit(decode_image(image.data))
    except UnreadableImage as unreadable:
        if number is None:
            raise
        raise UnreadableImage(unreadable.reason, f"image {number}: {unreadable.detail}") from unreadable
