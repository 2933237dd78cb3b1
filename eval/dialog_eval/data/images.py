"""Image vectors of the models that are compared."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dialog_eval.data.image_index import ImageIndex
from dialog_eval.models import Models, Variant
from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import UsageError
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

    def of(self, variant: Variant, image_ids: Sequence[str]) -> Tensor:
        """The vectors (N, D) of the given images, from the image tower of `variant`."""
        vectors = self.vectors[variant.image_tower]
        return vectors[torch.tensor([self.rows[image_id] for image_id in image_ids], device=vectors.device)]


def embed_images(
    models: Models, index: ImageIndex, image_ids: set[str], on_progress: OnProgress = ignore_progress
) -> ImageVectors:
    """Encodes the given images, once per image tower; only one batch of pixels is in memory.

    Raises UsageError for an image that cannot be decoded: without it, the results would not be comparable.
    """
    on_progress("images", 0, len(image_ids), "images")
    rows: dict[str, int] = {}
    parts: list[list[Tensor]] = [[] for _ in models.image_towers]
    for names, pixels in pixel_batches(models.image_towers, index, image_ids, models.batch_size):
        for name in names:
            rows[name] = len(rows)
        for number, part in enumerate(parts):
            part.append(models.encode_images(pixels[number], number))
        on_progress("images", len(rows), len(image_ids), "images")
    return ImageVectors(rows=rows, vectors=[torch.cat(part) for part in parts])


def pixel_batches(
    clips: Sequence[Clip], index: ImageIndex, image_ids: set[str], batch_size: int
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Yields batches: ids of images, and for each model their pixels (N, 3, H, W) after its preprocessing.

    Raises UsageError as `embed_images` does.
    """
    images = index.read(image_ids)
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(images, batch_size)):
            # One list per image with the pixels for each model.
            pixels = list(pool.map(lambda image: _pixels(clips, image), batch))
            yield [image.image_id for image in batch], [torch.stack(of_model) for of_model in zip(*pixels, strict=True)]


def _pixels(clips: Sequence[Clip], image: SourceImage) -> list[Tensor]:
    try:
        decoded = decode_image(image.data)
    except UnreadableImage as error:
        why = f"{error.reason}: {error.detail}"
        raise UsageError(
            f"image {image.image_id} cannot be read ({why}): an evaluation needs all its images."
        ) from None
    return [clip.preprocess(decoded) for clip in clips]
