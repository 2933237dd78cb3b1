"""Diagnostics of a model's vectors on images and captions: alignment, uniformity, distributions of similarities."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dialog_eval.results import Entry, Metric, Reference
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition, sha256_head
from dialog_eval.tasks.retrieval import (
    CAPTIONS_HELP,
    CaptionsPerImage,
    RetrievalTask,
    Split,
    load_retrieval,
    parse_captions_per_image,
)
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from torch import Tensor

    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosticsOptions:
    """The captions, and other texts about the same images."""

    captions: Annotated[Path, typer.Option(help=CAPTIONS_HELP)]
    other_captions: Annotated[
        Path | None,
        typer.Option(
            help="Texts of another kind about the same images, in such a file or folder: how far the distribution of "
            "their similarities is from that of the captions."
        ),
    ] = None
    dialogues: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="The same with a dialogues dataset about these images: each question with its answer is a text.",
        ),
    ] = None
    split: Split = None
    captions_per_image: CaptionsPerImage = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherTexts:
    """Texts of another kind about the images of a task."""

    name: str
    texts: list[str]


@TASKS.register("diagnostics")
class Diagnostics(TaskDefinition[DiagnosticsOptions]):
    """The task "diagnostics": properties of vectors that are no accuracies."""

    description = (
        "Alignment of images and captions, uniformity of both, cosines within and across modalities, and the distance "
        "(MMD^2) between distributions of similarities: of the model and the baseline, and of two kinds of texts."
    )
    example = (
        "dialog-eval diagnostics --checkpoint draft/model --images val2014/ --captions captions_val2014.json "
        "--out results.json"
    )
    options_type = DiagnosticsOptions
    presentations = (Presentation(task="diagnostics", title="Diagnostics", percent=False),)

    def __init__(self, options: DiagnosticsOptions) -> None:
        super().__init__(options)
        self._per_image = parse_captions_per_image(options.captions_per_image)
        if options.other_captions is not None and options.dialogues is not None:
            raise UsageError("--other-captions and --dialogues are both the other texts: give one of them.")

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads the caption files."""
        given = self.options
        captions = load_retrieval(given.captions, index, captions_per_image=self._per_image, split=given.split)
        others = None
        if given.other_captions is not None:
            others = load_retrieval(given.other_captions, index, captions_per_image=self._per_image, split=given.split)
            if set(others.image_ids) != set(captions.image_ids):
                raise UsageError(f"{given.other_captions} is not about the same images as {given.captions}.")
            others = OtherTexts(name=others.dataset, texts=_flat(others)[0])
        if given.dialogues is not None:
            others = _of_dialogues(given.dialogues, captions)
        return [DiagnosticsTask(captions=captions, others=others)]


def _of_dialogues(location: str, captions: RetrievalTask) -> OtherTexts:
    """The pairs that the gates keep. Raises UsageError for no dataset, and for one without some of the images."""
    from dialog_eval.data.dialogues import open_given, short_name
    from dialog_gen.dataset.record import kept_pairs

    missing, texts = set(captions.image_ids), list[str]()
    count = len(missing)
    for row in open_given("--dialogues", location).rows(["image_id", "texts", "gates"]):
        if row["image_id"] in missing:
            missing.remove(row["image_id"])
            texts += [f"{pair['user']} {pair['assistant']}" for pair in kept_pairs(row)]
    if missing:
        raise UsageError(
            f"--dialogues {location} lacks {len(missing):,} of the {count_of(count, 'image', grouped=True)} of "
            f"--captions, such as {min(missing)}: generate dialogues about the same --images."
        )
    if not texts:
        raise UsageError(f"--dialogues {location}: the gates keep no question and answer.")
    digest = sha256_head("\n".join(texts).encode())
    return OtherTexts(name=f"{short_name(location)} {digest}", texts=texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosticsTask:
    """Images with captions, and perhaps with other texts."""

    captions: RetrievalTask
    others: OtherTexts | None

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images in the index."""
        return self.captions.image_ids

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> tuple[list[Entry], list[Reference]]:
        """Computes the diagnostics of each model; distances are from the first one, the baseline."""
        import torch

        from dialog_eval.metrics.distributions import alignment, cosine_with_others, mmd2_of_similarities, uniformity

        texts, belongs = _flat(self.captions)
        others = self.others.texts if self.others else []
        encoded = models.encode_texts(
            [*texts, *others], counter(on_progress, "captions", len(texts) + len(others), "captions")
        )
        entries: list[Entry] = []
        first: tuple[Tensor, Tensor] | None = None
        for variant in models.variants:
            vectors = models.text_vectors(variant, encoded)
            mine, of_others = vectors[: len(texts)], vectors[len(texts) :]
            seen = images.of(variant, self.image_ids)
            first = first or (seen, mine)
            owners = torch.tensor(belongs, device=seen.device)
            own = seen[owners]
            metrics = [
                Metric.of("alignment", alignment(own, mine).tolist(), belongs),
                Metric.of("uniformity, images", uniformity(seen).tolist()),
                Metric.of("uniformity, captions", uniformity(mine).tolist(), belongs),
                Metric.of("cosine, captions and their images", (own * mine).sum(1).tolist(), belongs),
                Metric.of("cosine, captions of different images", cosine_with_others(mine, owners).tolist(), belongs),
            ]
            if len(models.alone) > 1:
                distances = mmd2_of_similarities(seen, mine, *first)
                metrics.append(Metric.of("MMD² to the baseline", distances.tolist()))
            if self.others is not None:
                distances = mmd2_of_similarities(seen, mine, seen, of_others)
                metrics.append(Metric.of("MMD² of captions to other texts", distances.tolist()))
            entries.append(variant.entry("diagnostics", self.captions.dataset, self._protocol(), metrics))
        return entries, []

    def _protocol(self) -> str:
        other = f"; other texts: {self.others.name}" if self.others else ""
        return f"{self.captions.protocol}{other}"


def _flat(task: RetrievalTask) -> tuple[list[str], list[int]]:
    """The texts, and the place of each text's image."""
    texts = [text for some in task.captions.values() for text in some]
    return texts, [place for place, some in enumerate(task.captions.values()) for _ in some]
