"""Models that write texts about images (`dialog_gen.clip.base.TextWriter`), and their inputs."""

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
class TextRequest(WritingPrompt):
    """A request for one text about an image."""

    image_id: str
    """Its id in the image index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterImages:
    """The images that texts are written about, and their vectors."""

    image_ids: list[str]
    index: ImageIndex
    models: Models
    variant: Variant
    vectors: ImageVectors
    described: Tensor | None
    """(images, D) unit-norm: the mean text vector of each image's captions; None if there are no captions."""


class Contexts(NamedTuple):
    """Inputs that represent some images."""

    suffix: str
    """Suffix of the row's label: "" for the images themselves."""
    image_ids: Sequence[str]
    values: Tensor
    """(images, ...), as `TextWriter.write` takes them."""


def open_writer(folder: str, pretrained: str | None = None) -> Clip:
    """Loads a model that writes texts. Raises UsageError as `load_clip` does, and for a model that writes none."""
    if pretrained is not None:
        raise UsageError(f"{folder} has its weights itself: leave out --pretrained {pretrained}.")
    return load_clip(folder, needs=GENERATION)


def suffixes(writer: TextWriter, has_captions: bool) -> tuple[str, ...]:
    """The label suffixes that `contexts` yields."""
    return ("", ", blind", ", from captions") if writer.reads_vectors and has_captions else ("", ", blind")


def contexts(writer: TextWriter, seen: WriterImages) -> Iterator[Contexts]:
    """Yields the inputs of all runs: the images themselves, blind (the mean of all images) and from their captions.

    For a writer that reads pixels it yields one batch of images at a time, because their inputs are about a hundred
    times larger than vectors.
    """
    if not writer.reads_vectors:
        yield from _read(writer, seen)
        return
    own = seen.vectors.of(seen.variant, seen.image_ids)  # (images, D)
    yield Contexts("", seen.image_ids, own)
    yield Contexts(", blind", seen.image_ids, normalize(own.mean(0, keepdim=True), dim=-1).expand_as(own))
    if seen.described is not None:
        yield Contexts(", from captions", seen.image_ids, seen.described)


def _read(writer: TextWriter, seen: WriterImages) -> Iterator[Contexts]:
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
