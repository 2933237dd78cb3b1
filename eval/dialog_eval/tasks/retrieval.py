"""Image and text retrieval on COCO captions (arXiv 1504.00325)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BeforeValidator

from dialog_eval.data.coco import load_captions
from dialog_eval.results import Entry, Metric, Reference
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition, dataset_name
from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models

KS = (1, 5, 10)

CAPTIONS_HELP = "COCO captions JSON, or Karpathy's dataset_coco.json."
CaptionsPerImage = Annotated[
    str,
    BeforeValidator(str),
    typer.Option(metavar="N|all", help="Use the first N captions of each image, or all."),
]
Split = Annotated[
    str | None, typer.Option(help="Split of dataset_coco.json: test (default), val, train (with restval).")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalOptions:
    """The captions file, and which of its captions are used."""

    captions: Annotated[Path, typer.Option(help=CAPTIONS_HELP)]
    split: Split = None
    captions_per_image: CaptionsPerImage = "5"


@TASKS.register("retrieval")
class Retrieval(TaskDefinition[RetrievalOptions]):
    """The task "retrieval": recall in both directions."""

    description = "Recall at 1, 5 and 10: of images by their captions, of captions by their image."
    options_type = RetrievalOptions
    presentations = (
        Presentation(
            task="retrieval",
            title="Retrieval",
            headlines={"image R@1": "image R@1", "text R@1": "text R@1"},
        ),
    )
    in_sweep = True

    def __init__(self, options: RetrievalOptions) -> None:
        super().__init__(options)
        self._per_image = parse_captions_per_image(options.captions_per_image)

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads the captions file."""
        given = self.options
        return [load_retrieval(given.captions, index, captions_per_image=self._per_image, split=given.split)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalTask:
    """Retrieves the image of each caption, and any of the captions of each image."""

    dataset: str
    protocol: str
    captions: dict[int, list[str]]
    """COCO's image id -> the captions that are used."""
    source_ids: dict[int, str]
    """COCO's image id -> its id in the image index."""

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images in the index, in the order of the captions."""
        return [self.source_ids[image] for image in self.captions]

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> tuple[list[Entry], list[Reference]]:
        """Computes R@1, R@5 and R@10 in both directions."""
        import torch

        from dialog_eval.metrics.retrieval import retrieve

        texts = [caption for captions in self.captions.values() for caption in captions]
        belongs = [place for place, captions in enumerate(self.captions.values()) for _ in captions]
        image_of = list(self.captions)
        groups = [image_of[place] for place in belongs]
        encoded = models.encode_texts(texts, counter(on_progress, "captions", len(texts), "captions"))
        entries: list[Entry] = []
        for variant in models.variants:
            found = retrieve(
                images.of(variant, self.image_ids),
                models.text_vectors(variant, encoded),
                torch.tensor(belongs),
                KS,
            )
            metrics = [Metric.of(f"image R@{k}", (found.image_ranks < k).tolist(), groups) for k in KS]
            metrics += [Metric.of(f"text R@{k}", (found.text_ranks < k).tolist()) for k in KS]
            entries.append(variant.entry("retrieval", self.dataset, self.protocol, metrics))
        return entries, []


def load_retrieval(
    captions: Path, index: "ImageIndex", *, captions_per_image: int | None = 5, split: str | None = None
) -> RetrievalTask:
    """Builds the task of a captions file.

    `captions_per_image`: use only the first captions of each image, up to this number; None for all. COCO has a few
    images with more than five: the 5,000 images of the Karpathy test split have 25,010 captions. `split`: as for
    `load_captions`.

    Raises UsageError for a file that is not a captions file, and for images that the index lacks or has twice.
    """
    content = load_captions(captions, split)
    chosen = {image: texts[:captions_per_image] for image, texts in content.captions.items()}
    source_ids = index.by_file_name(content.file_names) if content.file_names else index.by_number(chosen)
    which = "all captions" if captions_per_image is None else f"first {captions_per_image} captions of each image"
    count = sum(map(len, chosen.values()))
    return RetrievalTask(
        dataset=" ".join(filter(None, [dataset_name(captions), content.split])),
        protocol=f"{which}: {len(chosen)} images, {count} captions",
        captions=chosen,
        source_ids=source_ids,
    )


def parse_captions_per_image(text: str) -> int | None:
    """Parses a number of captions; None means all. Raises UsageError for other texts."""
    if text == "all":
        return None
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--captions-per-image {text}: give a number from 1 on, or all.")
    return int(text)
