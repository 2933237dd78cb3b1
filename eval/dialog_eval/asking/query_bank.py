"""Debiased retrieval by a bank of queries (NNN, arXiv 2410.24114).

    score(query, candidate) - weight * mean score of the candidate for its 128 nearest queries of the bank

The bank has images and their captions: captions are the queries for images, images the queries for texts.
"""

from collections.abc import Iterator, Set
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dialog_eval.asking.choice import DEBIAS_WEIGHTS
from dialog_eval.asking.debias import mean_of_nearest
from dialog_eval.data.dialogues import is_held_out, pictures, short_name
from dialog_eval.data.image_index import ImageIndex
from dialog_eval.data.images import embed_stream, told_if_measured
from dialog_eval.metrics.retrieval import retrieve
from dialog_eval.results import Asked
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_images
from dialog_gen.core.progress import OnProgress, counter
from dialog_gen.dataset.errors import NoDatasetError
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.sources.base import SourceImage

if TYPE_CHECKING:
    from dialog_eval.models import Models, Variant

BankSource = DatasetFolder | ImageIndex
BANK_IMAGES = 5000
_MEASURE = "R@1"


class QueryBank:
    """Images and captions, encoded by all models; a tenth of the images is held out to choose the weight."""

    def __init__(self, source: BankSource, models: "Models", on_progress: OnProgress) -> None:
        """Encodes the first 5,000 images of the source that have a caption, and their captions.

        Raises UsageError for a source with fewer than two captions.
        """
        location = source.spec if isinstance(source, ImageIndex) else source.location
        self.name = short_name(location)
        """What reports call it."""
        self._captions: list[str] = []
        self._sha256s: list[str] = []
        self._held_out: list[bool] = []

        def stream() -> Iterator[SourceImage]:
            for image in islice((image for image in _images(source) if image.caption), BANK_IMAGES):
                self._captions.append(image.caption or "")
                self._sha256s.append(sha256_images([image.data]))
                self._held_out.append(is_held_out(self._sha256s[-1]))
                yield image

        self._models = models
        self._images = embed_stream(models, stream(), "images with captions in --query-bank", None, on_progress)
        advance = counter(on_progress, "captions of the query bank", len(self._captions), "captions")
        self._texts = models.encode_texts(self._captions, advance)

    def choose(self, variant: "Variant", weight: float | None, measured: Set[str]) -> Asked:
        """The weight for a model: the given one, or the best on the held-out images; among equals the smallest.

        `measured`: hashes of the images of the evaluation; the result tells how many of the held-out ones they are.
        Best is the highest mean of image and text R@1. Raises UsageError if no two images are held out.
        """
        if weight is not None:
            return Asked(way="debias", debias_weight=weight)
        mask = torch.tensor(self._held_out)
        count = int(mask.sum())
        if count < 2:
            raise UsageError(f"--query-bank {self.name} has too few images to choose a weight: --query-bank-weight N.")
        images, texts = self._vectors(variant, held_out=True)
        tried: list[dict[str, float]] = []
        for one in DEBIAS_WEIGHTS:
            image_bias, text_bias = self.biases(variant, images, texts, one)
            found = retrieve(images, texts, torch.arange(count), (1,), image_bias=image_bias, text_bias=text_bias)
            tried.append({"debias_weight": one, _MEASURE: (found.image_recall[1] + found.text_recall[1]) / 2})
        best = max(tried, key=lambda one: one[_MEASURE])
        held_out = {sha256 for sha256, held in zip(self._sha256s, self._held_out, strict=True) if held}
        chosen_on = f"{count:,} held-out images of {self.name}" + told_if_measured(held_out, measured)
        return Asked(way="debias", debias_weight=best["debias_weight"], chosen_on=chosen_on, tried=tried)

    def biases(self, variant: "Variant", images: Tensor, texts: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """What is subtracted from the scores of images (images,) and of texts (texts,)."""
        bank_images, bank_texts = self._vectors(variant, held_out=False)
        return weight * mean_of_nearest(images, bank_texts), weight * mean_of_nearest(texts, bank_images)

    def _vectors(self, variant: "Variant", *, held_out: bool) -> tuple[Tensor, Tensor]:
        texts = self._models.text_vectors(variant, self._texts)
        images = self._images.vectors[variant.image_tower]
        mask = torch.tensor(self._held_out, device=images.device) == held_out
        if not mask.any():
            raise UsageError(f"--query-bank {self.name} has too few images with captions.")
        return images[mask], texts[mask]


def open_bank(source: str) -> BankSource:
    """Opens a dialogues dataset, or images with captions. Raises UsageError for a source that cannot be read."""
    try:
        return open_dataset(source)
    except NoDatasetError:
        try:
            return ImageIndex(source)
        except UsageError as error:
            told = f"--query-bank is a dialogues dataset, or images with captions: {error}"
            raise UsageError(told) from None


def _images(source: BankSource) -> Iterator[SourceImage]:
    if isinstance(source, ImageIndex):
        return source.read(set(source.image_ids))
    return (picture.image for picture in pictures(source, most=BANK_IMAGES))
