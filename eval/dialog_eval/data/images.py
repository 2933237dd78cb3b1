"""Image vectors of the models that are compared."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

import torch
from torch import Tensor

from dialog_eval.data.image_index import Box, ImageIndex
from dialog_eval.models import Models, Variant
from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_images
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.sources.base import SourceImage
from dialog_gen.sources.images import UnreadableImage, decode_image

_THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageVectors:
    """Unit-norm vectors of images."""

    rows: dict[str, int]
    """Id of an image in the index -> its row."""
    vectors: list[Tensor]
    """For each image tower (images, D), on the models' device."""
    hashes: frozenset[str] = frozenset()
    """The SHA-256 of each image's file."""

    def of(self, variant: Variant, image_ids: Sequence[str]) -> Tensor:
        """The vectors (N, D) of the given images, from the image tower of `variant`."""
        vectors = self.vectors[variant.image_tower]
        return vectors[torch.tensor([self.rows[image_id] for image_id in image_ids], device=vectors.device)]


def embed_images(
    models: Models, index: ImageIndex, image_ids: set[str], on_progress: OnProgress = ignore_progress
) -> ImageVectors:
    """Encodes the given images, once per image tower; only one batch of pixels is in memory.

    Raises UsageError for an image that cannot be decoded, because without it the results would not be comparable, and
    for a box that lies outside of its image.
    """
    return embed_stream(models, index.read(image_ids), "images", len(image_ids), on_progress, boxes=index.boxes)


def embed_stream(
    models: Models,
    images: Iterable[SourceImage],
    stage: str,
    total: int | None = None,
    on_progress: OnProgress = ignore_progress,
    *,
    boxes: Mapping[str, Box] = MappingProxyType({}),
) -> ImageVectors:
    """Encodes images in their order, each in a row of its own; `stage` is the name of this work for `on_progress`.

    Of an image whose id is in `boxes`, only what is in its box is encoded.

    Raises UsageError as `embed_images` does, and for no images.
    """
    on_progress(stage, 0, total, "images")
    rows: dict[str, int] = {}
    hashes: set[str] = set()

    def hashed() -> Iterator[SourceImage]:
        for image in images:
            hashes.add(sha256_images([image.data]))
            yield image

    parts: list[list[Tensor]] = [[] for _ in models.image_towers]
    for names, pixels in _batches(models.image_towers, hashed(), models.batch_size, boxes):
        for name in names:
            rows[name] = len(rows)
        for number, part in enumerate(parts):
            part.append(models.encode_images(pixels[number], number))
        on_progress(stage, len(rows), total, "images")
    if not rows:
        raise UsageError(f"no {stage} to encode.")
    return ImageVectors(rows=rows, vectors=[torch.cat(part) for part in parts], hashes=frozenset(hashes))


def told_if_measured(chosen_on: Set[str], measured: Set[str]) -> str:
    """What to add to the name of the images that a choice was made on; both are sets of SHA-256.

    Right on validation data; of a test it tells that its figures are none.
    """
    both = len(chosen_on & measured)
    return f" ({both:,} of them among the images of this evaluation)" if both else ""


def pixel_batches(
    clips: Sequence[Clip], index: ImageIndex, image_ids: set[str], batch_size: int
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Yields batches: ids of images, and for each model their pixels (N, 3, H, W) after its preprocessing.

    Raises UsageError as `embed_images` does.
    """
    return _batches(clips, index.read(image_ids), batch_size, index.boxes)


def _batches(
    clips: Sequence[Clip], images: Iterable[SourceImage], batch_size: int, boxes: Mapping[str, Box]
) -> Iterator[tuple[list[str], list[Tensor]]]:
    stream = iter(images)
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(stream, batch_size)):
            # One list per image with the pixels for each model.
            pixels = list(pool.map(lambda image: _pixels(clips, image, boxes.get(image.image_id)), batch))
            yield [image.image_id for image in batch], [torch.stack(of_model) for of_model in zip(*pixels, strict=True)]


def _pixels(clips: Sequence[Clip], image: SourceImage, box: Box | None) -> list[Tensor]:
    try:
        decoded = decode_image(image.data)
    except UnreadableImage as error:
        why = f"{error.reason}: {error.detail}"
        raise UsageError(
            f"image {image.image_id} cannot be read ({why}): an evaluation needs all its images."
        ) from None
    if box is not None:
        left, top, right, bottom = box
        if not (left < decoded.width and top < decoded.height and right > 0 and bottom > 0):
            size = f"{decoded.width} x {decoded.height} pixels"
            raise UsageError(f"the box of {image.image_id} lies outside of the image, which has {size}.")
        decoded = decoded.crop(box)
    return [clip.preprocess(decoded) for clip in clips]
