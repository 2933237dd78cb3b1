"""What the tasks have in common: models are measured on several in one pass over the images."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from dialog_eval.data.image_index import ImageSource
from dialog_eval.data.images import ImageVectors, embed_images
from dialog_eval.models import Models, NewBar
from dialog_eval.results import Entry, Reference

_DIGITS = 12


class EvaluationTask(Protocol):
    """Questions about images, and what counts as right."""

    @property
    def image_ids(self) -> Collection[str]:
        """The source's ids of the images that are needed."""
        ...

    def evaluate(self, models: Models, images: ImageVectors, new_bar: NewBar) -> tuple[list[Entry], list[Reference]]:
        """The entries of all variants, in their order, and what they are to be seen beside."""
        ...


def evaluate(
    tasks: Sequence[EvaluationTask], models: Models, source: ImageSource, new_bar: NewBar
) -> tuple[list[Entry], list[Reference]]:
    """Every variant on every task, task by task. Raises UsageError for an image that cannot be decoded."""
    images = embed_images(models, source, {image_id for task in tasks for image_id in task.image_ids}, new_bar)
    entries, references = list[Entry](), list[Reference]()
    for task in tasks:
        more_entries, more_references = task.evaluate(models, images, new_bar)
        entries += more_entries
        references += more_references
    return entries, references


def dataset_name(*files: Path) -> str:
    """The stem of the first file and 12 hexadecimal digits of the SHA-256 over the content of all."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{files[0].stem} {digest.hexdigest()[:_DIGITS]}"


def sha256_head(content: bytes) -> str:
    """The digits that name data which is no file."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
