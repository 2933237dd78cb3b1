"""Zero-shot classification of images with known classes (arXiv 2103.00020, section 3.1)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from dialog_eval.data.classes import lines_of, read_text, texts_of_classes
from dialog_eval.results import Entry, Metric, Reference
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition, sha256_head
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from torch import Tensor

    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models

Template = Callable[[str], str]

_PLACE = "{}"
# Number of texts, and of images, per batch.
_TEXTS_PER_BATCH = 8192
_TOP = 5
_IMAGES_PER_BATCH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationOptions:
    """The labels of the images, and the texts of the classes."""

    labels: Annotated[
        Path | None, typer.Option(help="JSON of image id -> class. Default: the first folder of each image's id.")
    ] = None
    classes: Annotated[
        Path | None,
        typer.Option(
            help="One class per line: its name and, if its text differs, a tab and the text. Or ImageNet's "
            "imagenet_class_index.json or LOC_synset_mapping.txt. Or imagenet: its 1,000 classes. Default: those of "
            "the labels; ids of ImageNet, such as n01440764, get the names that CLIP's authors use."
        ),
    ] = None
    templates: Annotated[
        str, typer.Option(help="openai, simple, or a file with one template per line, such as: a {}.")
    ] = "openai"


@TASKS.register("classify")
class Classification(TaskDefinition[ClassificationOptions]):
    """The task "classify": each image is assigned the nearest class."""

    description = (
        "Zero-shot classification: top-1, top-5 (of more than five classes), and top-1 as the mean over classes."
    )
    example = (
        "dialog-eval classify --checkpoint draft/model --images val/ --labels labels.json --classes "
        "classes.txt --out results.json"
    )
    options_type = ClassificationOptions
    presentations = (
        Presentation(
            task="classification", title="Zero-shot classification", headlines={"top-1": "classification, top-1"}
        ),
    )

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads labels, classes and templates."""
        return [load_classification(self.options, index)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationTask:
    """Each image is assigned the class with the most similar texts."""

    dataset: str
    protocol: str
    prompts: list[list[str]]
    """The texts of each class, one for each template."""
    labels: dict[str, int]
    """Id of an image in the index -> number of its class."""

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images in the index."""
        return list(self.labels)

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> tuple[list[Entry], list[Reference]]:
        """Top-1 and top-5 accuracy of the images, and top-1 averaged over the classes that have images.

        With five classes or fewer there is no top-5, which would be 100 %.
        """
        import torch

        from dialog_eval.metrics.retrieval import hit_ranks

        vectors = self._class_vectors(
            models, counter(on_progress, "class texts", sum(map(len, self.prompts)), "class texts")
        )
        labels = torch.tensor(list(self.labels.values()))
        entries: list[Entry] = []
        for variant, classes in zip(models.variants, vectors, strict=True):
            queries = images.of(variant, self.image_ids)
            ranks = np.concatenate(
                [
                    hit_ranks(some @ classes.T, wanted)
                    for some, wanted in zip(
                        queries.split(_IMAGES_PER_BATCH), labels.split(_IMAGES_PER_BATCH), strict=True
                    )
                ]
            )
            _, class_of, sizes = np.unique(labels.numpy(), return_inverse=True, return_counts=True)
            metrics = [
                Metric.of("top-1", (ranks < 1).tolist()),
                # Of five classes every one is among the first five.
                *([Metric.of("top-5", (ranks < _TOP).tolist())] if len(classes) > _TOP else []),
                Metric.of("mean per class", (np.bincount(class_of, weights=ranks < 1) / sizes).tolist()),
            ]
            entries.append(variant.entry("classification", self.dataset, self.protocol, metrics))
        return entries, []

    def _class_vectors(self, models: "Models", advance: Callable[[float], None]) -> "list[Tensor]":
        """The class vectors (classes, D) of each variant."""
        import torch

        from dialog_eval.metrics.classification import ensemble_class_vectors

        templates = len(self.prompts[0])
        classes_per_batch = max(1, _TEXTS_PER_BATCH // templates)
        parts: list[list[Tensor]] = [[] for _ in models.variants]
        for start in range(0, len(self.prompts), classes_per_batch):
            texts = [text for prompts in self.prompts[start : start + classes_per_batch] for text in prompts]
            encoded = models.encode_texts(texts, advance)
            for variant, part in zip(models.variants, parts, strict=True):
                vectors = models.text_vectors(variant, encoded)
                part.append(ensemble_class_vectors(vectors.unflatten(0, (-1, templates))))
        return [torch.cat(part) for part in parts]


def load_classification(options: ClassificationOptions, index: "ImageIndex") -> ClassificationTask:
    """Builds the task of the index's images.

    `labels` is a JSON object of image id (or file name) -> class; only its images are evaluated. Without it all images
    are evaluated, and the first folder of an image's id is its class. `classes`: a file that `texts_of_classes` reads;
    without it, the classes are the names in the labels. `templates` is "openai", "simple" or a file with one template
    per line, in which {} is replaced by the class.

    Raises UsageError for files of another form, unknown classes, classes that `texts_of_classes` refuses, images that
    the index lacks, and an image with two labels.
    """
    labels, classes, templates = options.labels, options.classes, options.templates
    names = _labels_of_folders(index) if labels is None else _labels_of_file(labels, index)
    texts = texts_of_classes(classes, set(names.values()))
    numbers = {name: number for number, name in enumerate(texts)}
    if unknown := sorted(set(names.values()) - set(numbers)):
        raise UsageError(f"{classes} lacks the class {unknown[0]!r}: {did_you_mean(unknown[0], numbers)}.")
    found = _read_templates(templates)
    digits = sha256_head(json.dumps([sorted(names.items()), list(texts)]).encode())
    shown = Path(templates).name
    text_digits = sha256_head(json.dumps([[fill(text) for fill in found] for text in texts.values()]).encode())
    return ClassificationTask(
        dataset=f"{labels.stem if labels else Path(index.spec).stem} {digits}",
        protocol=f"{len(texts)} classes, {len(found)} templates ({shown}), texts {text_digits}",
        prompts=[[fill(text) for fill in found] for text in texts.values()],
        labels={image_id: numbers[name] for image_id, name in names.items()},
    )


def _labels_of_folders(index: "ImageIndex") -> dict[str, str]:
    names: dict[str, str] = {}
    for image_id in index.image_ids:
        folder, slash, _ = image_id.partition("/")
        if not slash:
            raise UsageError(f"image {image_id} lies in no folder that could name its class: give --labels.")
        if image_id in names:
            raise UsageError(f"{index.spec} has the image id {image_id!r} twice: ids must be unique.")
        names[image_id] = folder
    return names


def _labels_of_file(path: Path, index: "ImageIndex") -> dict[str, str]:
    try:
        content: Any = parse_json(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}.") from None
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content.values()):
        raise UsageError(f"{path} must contain a JSON object of image id -> class name.")
    source_ids = index.by_file_name({image_id: image_id for image_id in content}, each_once=True)
    return {source_ids[image_id]: name for image_id, name in content.items()}


def _read_templates(name_or_file: str) -> Sequence[Template]:
    import open_clip

    sets: dict[str, Sequence[Template]] = {
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }
    if name_or_file in sets:
        return sets[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise UsageError(f"no template set or file {name_or_file!r}: {did_you_mean(name_or_file, sets)}.")
    return [_template(line, path) for line in lines_of(path, "template")]


def _template(line: str, path: Path) -> Template:
    if _PLACE not in line:
        raise UsageError(f"{path}: the template {line!r} has no {_PLACE} where the class belongs.")
    return lambda text: line.replace(_PLACE, text)
