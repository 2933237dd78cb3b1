"""Image vectors of the models that are compared."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dialog_eval.image_source import ImageSource
from dialog_eval.models import Models, NewBar, Variant
from dialog_gen.errors import UsageError
from dialog_gen.images import UnreadableImage, decode_image
from dialog_gen.sources import SourceImage

_THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageVectors:
    """Unit-norm vectors of images."""

    rows: dict[str, int]
    """The source's id of an image -> its row."""
    vectors: list[Tensor]
    """(images, D) of each image tower, on the models' device."""

    def of(self, variant: Variant, image_ids: Sequence[str]) -> Tensor:
        """(N, D): the vectors of these images, as that model sees them."""
        vectors = self.vectors[variant.image_tower]
        return vectors[torch.tensor([self.rows[image_id] for image_id in image_ids], device=vectors.device)]


def embed_images(models: Models, source: ImageSource, image_ids: set[str], new_bar: NewBar) -> ImageVectors:
    """Encodes these images, each once by each image tower; one batch of pixels is held at a time.

    Raises UsageError for an image that cannot be decoded: an evaluation that leaves out images is another one.
    """
    advance = new_bar("images", len(image_ids))
    rows: dict[str, int] = {}
    parts: list[list[Tensor]] = [[] for _ in models.image_towers]
    images = source.read(image_ids)
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(islice(images, models.batch_size)):
            for image in batch:
                rows[image.image_id] = len(rows)
            # (images of the batch, image towers) of pixels
            pixels = list(pool.map(lambda image: _pixels(models, image), batch))
            for number, part in enumerate(parts):
                part.append(models.encode_images(torch.stack([row[number] for row in pixels]), number))
            advance(len(batch))
    return ImageVectors(rows=rows, vectors=[torch.cat(part) for part in parts])


def _pixels(models: Models, image: SourceImage) -> list[Tensor]:
    try:
        decoded = decode_image(image.data)
    except UnreadableImage as error:
        why = f"{error.reason}: {error.detail}"
        raise UsageError(
            f"image {image.image_id} cannot be read ({why}): an evaluation needs all its images."
        ) from None
    return [clip.preprocess(decoded) for clip in models.image_towers]
