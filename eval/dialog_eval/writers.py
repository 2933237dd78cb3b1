"""Models that write texts about images (`dialog_gen.clip.base.TextWriter`), and what they are given of each image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import normalize

from dialog_eval.data.image_index import ImageIndex
from dialog_eval.data.images import ImageVectors, pixel_batches
from dialog_eval.models import Models, Variant
from dialog_gen.clip.base import GENERATION, Clip, TextWriter, WritingPrompt
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(WritingPrompt):
    """One text to write."""

    image_id: str
    """In the index of images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The images that are written about."""

    image_ids: list[str]
    index: ImageIndex
    models: Models
    variant: Variant
    vectors: ImageVectors
    described: Tensor | None
    """(images, D) unit-norm: the mean text vector of each image's captions; None where there are no captions."""


class Contexts(NamedTuple):
    """What stands for some images."""

    suffix: str
    """Of the row's label: "" for the images themselves."""
    image_ids: Sequence[str]
    values: Tensor
    """(images, ...), as `TextWriter.write` takes them."""


def open_writer(folder: str, pretrained: str | None = None) -> Clip:
    """The model of a folder. Raises UsageError as `load_clip` does, and for a model that writes no texts."""
    if pretrained is not None:
        raise UsageError(f"{folder} has its weights itself: leave out --pretrained {pretrained}.")
    return load_clip(folder, needs=GENERATION)


def suffixes(writer: TextWriter, has_captions: bool) -> tuple[str, ...]:
    """Those of `contexts`."""
    return ("", ", blind", ", from captions") if writer.reads_vectors and has_captions else ("", ", blind")


def contexts(writer: TextWriter, seen: Seen) -> Iterator[Contexts]:
    """All images as themselves, blind (the mean of all images) and, where there are captions, as those.

    Of a writer that reads pixels, a batch of images at a time: what it reads of one is a hundred times its vector.
    """
    if not writer.reads_vectors:
        yield from _read(writer, seen)
        return
    own = seen.vectors.of(seen.variant, seen.image_ids)  # (images, D)
    yield Contexts("", seen.image_ids, own)
    yield Contexts(", blind", seen.image_ids, normalize(own.mean(0, keepdim=True), dim=-1).expand_as(own))
    if seen.described is not None:
        yield Contexts(", from captions", seen.image_ids, seen.described)


def _read(writer: TextWriter, seen: Seen) -> Iterator[Contexts]:
    total: Tensor | None = None
    size = seen.models.batch_size
    for image_ids, pixels in pixel_batches([seen.variant.clip], seen.index, set(seen.image_ids), size):
        read = writer.read(pixels[0])
        total = read.sum(0) if total is None else total + read.sum(0)
        yield Contexts("", image_ids, read)
    assert total is not None  # noqa: S101 - there is an image where something is asked
    for start in range(0, len(seen.image_ids), size):
        image_ids = seen.image_ids[start : start + size]
        yield Contexts(", blind", image_ids, (total / len(seen.image_ids)).expand(len(image_ids), *total.shape))
