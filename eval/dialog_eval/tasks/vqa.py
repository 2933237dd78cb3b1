"""VQAv1 (arXiv 1505.00468) for models that compare images with texts: the best-scoring candidate is the answer.

A candidate's score is the cosine of the image and the text of question and candidate. Calibration subtracts the text's
score without the image: its cosine with the mean image (of unit length), or with the question alone.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from dialog_eval.data.coco import load_file_names
from dialog_eval.data.vqa import CHOICES, VqaItem, load_answers, load_vqa
from dialog_eval.metrics.vqa import Mode, normalize_answer, vqa_accuracy
from dialog_eval.results import Entry, Metric, Reference
from dialog_eval.scores import Calibration, Question, best_candidates
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition, dataset_name
from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models

Candidates = Literal["mc18", "top1000", "top3129"]
DialogueFormat = Literal["question_answer", "labelled", "answer"]
"""The keys of `dialog_train.data.training_set.DIALOGUE_FORMATS`; importing them would take seconds."""
Measure = Literal["official", "exact"]

MetricOption = Annotated[
    Measure, typer.Option("--metric", help="Agreement with ten people, or equality with their most frequent answer.")
]
ModeOption = Annotated[
    Mode, typer.Option(help="Normalise answers as the published code does, or as its documentation says.")
]
TrainAnnotations = Annotated[
    Path | None, typer.Option(help="VQAv1 annotations of a training split, for top answers and question-type prior.")
]
ImageList = Annotated[
    Path | None,
    typer.Option(help="COCO file whose `images` name the files. Default: use the digits at the end of image ids."),
]

_ANSWER_TYPES = ("yes/no", "number", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaOptions:
    """The questions, and how answers are chosen and judged."""

    questions: Annotated[Path, typer.Option(help="VQAv1 questions JSON.")]
    annotations: Annotated[Path, typer.Option(help="VQAv1 annotations JSON of the same split.")]
    candidates: Annotated[
        Candidates, typer.Option(help="Each question's 18 choices, or the most frequent answers of training.")
    ] = "mc18"
    metric: MetricOption = "official"
    mode: ModeOption = "official"
    dialogue_format: Annotated[
        DialogueFormat,
        typer.Option("--format", help="How question and answer become one text; use the format of the training."),
    ] = "question_answer"
    calibrate: Annotated[
        Calibration,
        typer.Option(help="Subtract a candidate's score with the mean image, or with the question alone."),
    ] = "none"
    train_annotations: TrainAnnotations = None
    image_list: ImageList = None


@TASKS.register("vqa")
class Vqa(TaskDefinition[VqaOptions]):
    """The task "vqa": answers chosen from candidates."""

    description = (
        "Accuracy on VQAv1, over all questions and for each type of answer, with references that need no image."
    )
    options_type = VqaOptions
    presentations = (
        Presentation(
            task="vqa",
            title="Visual question answering",
            short_title="VQA",
            headlines={"accuracy": "VQA, {protocol}"},
        ),
    )
    in_sweep = True

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads questions and annotations."""
        return [load_vqa_task(self.options, index)]


@dataclass(frozen=True, kw_only=True)
class VqaTask:
    """The questions of a split and their answers."""

    dataset: str
    protocol: str
    """Without the calibration, which the blind run may not use."""
    items: list[VqaItem]
    top_answers: tuple[str, ...]
    """The candidates of every question; empty if each question has its own."""
    any_answer: bool
    """Whether answers are written by a model instead of chosen from candidates."""
    source_ids: dict[int, str]
    """VQA's image id -> its id in the image index."""
    prior: dict[str, str]
    """The most frequent answer of each question type."""
    prior_name: str
    options: VqaOptions

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images in the index, each once, in the order of the questions."""
        return list(dict.fromkeys(self.source_ids[item.image_id] for item in self.items))

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> tuple[list[Entry], list[Reference]]:
        """Computes accuracy over all questions and for each type of answer; for unblended models also in a blind run.

        The blind run sees the mean image in place of every image. It is not calibrated by the mean image because all
        its scores would be 0.
        """
        from dialog_train.data.training_set import DIALOGUE_FORMATS

        chosen = best_candidates(
            models,
            images,
            [Question(self.source_ids[item.image_id], item.question, self.candidates(item)) for item in self.items],
            text_format=DIALOGUE_FORMATS[self.options.dialogue_format],
            calibration=self.options.calibrate,
            advance=counter(on_progress, "questions", len(self.items), "questions"),
        )
        values = np.empty(chosen.shape)  # (variants, sighted or blind, questions)
        for number, item in enumerate(self.items):
            candidates = self.candidates(item)
            of_question = chosen[..., number]
            right = {index: self.judge(candidates[index], item) for index in np.unique(of_question).tolist()}
            values[..., number] = np.vectorize(right.__getitem__, otypes=[float])(of_question)
        calibration = self.options.calibrate
        calibrated = self.protocol if calibration == "none" else f"{self.protocol}, calibrated by {calibration}"
        entries: list[Entry] = []
        for variant, (sighted, blind) in zip(models.variants, values, strict=True):
            entries.append(variant.entry("vqa", self.dataset, calibrated, self.metrics(sighted.tolist())))
            if any(variant is alone for alone in models.alone):
                protocol = self.protocol if calibration == "mean-image" else calibrated
                metrics = self.metrics(blind.tolist())
                entries.append(variant.entry("vqa", self.dataset, protocol, metrics, label_suffix=", blind"))
        return entries, self.references()

    def candidates(self, item: VqaItem) -> tuple[str, ...]:
        """The candidate answers of a question; empty if any answer is possible."""
        return self.top_answers or item.choices

    def judge(self, answer: str, item: VqaItem) -> float:
        """The accuracy of an answer, 0 to 1."""
        if self.options.metric == "official":
            return vqa_accuracy(answer, item.answers, self.options.mode)
        return float(normalize_answer(answer, self.options.mode) == normalize_answer(item.answer, self.options.mode))

    def metrics(self, accuracy: Sequence[float]) -> list[Metric]:
        """The measures computed from the accuracy of each question."""
        groups = [item.image_id for item in self.items]
        metrics = [Metric.of("accuracy", accuracy, groups)]
        for name, places in self._answer_types.items():
            metrics.append(Metric.of(name, [accuracy[i] for i in places], [groups[i] for i in places]))
        return metrics

    def _can_be_said(self, answer: str, item: VqaItem) -> bool:
        return self.any_answer or answer in self.candidates(item)

    @cached_property
    def _answer_types(self) -> dict[str, list[int]]:
        """Name of the metric -> indices of its questions."""
        places: dict[str, list[int]] = {name: [] for name in _ANSWER_TYPES}
        for place, item in enumerate(self.items):
            places.setdefault(item.answer_type, []).append(place)
        return {f"accuracy, {name}": some for name, some in places.items() if some}

    def references(self) -> list[Reference]:
        """The accuracy of answers that need no image: always "yes", and the question type's most frequent answer."""
        references: list[Reference] = []
        for name, answers in (
            ('always "yes"', ["yes"] * len(self.items)),
            (self.prior_name, [self.prior.get(item.question_type) for item in self.items]),
        ):
            # An answer that is not a candidate counts as wrong.
            accuracy = [
                self.judge(answer, item) if answer is not None and self._can_be_said(answer, item) else 0.0
                for answer, item in zip(answers, self.items, strict=True)
            ]
            for metric, places in {"accuracy": range(len(self.items)), **self._answer_types}.items():
                value = float(np.mean([accuracy[i] for i in places]))
                references.append(Reference(name=name, task="vqa", dataset=self.dataset, metric=metric, value=value))
        return references


def load_vqa_task(options: VqaOptions, index: "ImageIndex", *, any_answer: bool = False) -> VqaTask:
    """Builds the task of a split. `any_answer`: models write their answers; there are no candidates.

    The most frequent answers, overall and of each question type, come from `options.train_annotations`; without it
    those of each question type come from the split itself. `options.image_list` is a COCO file whose `images` name the
    files; it is needed if image ids do not contain COCO's integers.

    Raises UsageError for files that `load_vqa` refuses, for candidates that the files lack, and for images that the
    index lacks or has twice.
    """
    items = load_vqa(options.questions, options.annotations)
    answers = load_answers(options.train_annotations) if options.train_annotations else None
    if any_answer:
        candidates, top_answers = "generated", ()
    else:
        candidates, top_answers = _candidates(options.candidates, items, options.questions, answers)
    protocol = [candidates, "official accuracy" if options.metric == "official" else "exact match"]
    if options.mode != "official":
        protocol.append(f"{options.mode} normalisation")
    if options.dialogue_format != "question_answer":
        protocol.append(f"format {options.dialogue_format}")
    known = answers or [(item.question_type, item.answer) for item in items]
    return VqaTask(
        dataset=dataset_name(options.questions, options.annotations),
        protocol=", ".join(protocol),
        items=items,
        top_answers=top_answers,
        any_answer=any_answer,
        source_ids=_source_ids(items, index, options.image_list),
        prior=_prior(known),
        prior_name="question-type prior" + ("" if answers else " (of this split)"),
        options=options,
    )


def _candidates(
    name: Candidates, items: list[VqaItem], questions: Path, answers: list[tuple[str, str]] | None
) -> tuple[str, tuple[str, ...]]:
    """The name of the candidates, and the candidates themselves if all questions have the same."""
    if name == "mc18":
        if not items[0].choices:
            raise UsageError(
                f"{questions} has no multiple_choices: give the MultipleChoice questions, or --candidates top1000."
            )
        return f"MC-{CHOICES}", ()
    if answers is None:
        raise UsageError(f"--candidates {name} are the most frequent answers of a training split: --train-annotations.")
    most = int(name.removeprefix("top"))
    # Counter orders equal counts by first appearance.
    top = tuple(answer for answer, _ in Counter(answer for _, answer in answers).most_common(most))
    return f"top-{most}" + (f" ({len(top)} exist)" if len(top) < most else ""), top


def _source_ids(items: list[VqaItem], index: "ImageIndex", image_list: Path | None) -> dict[int, str]:
    wanted = dict.fromkeys(item.image_id for item in items)
    if image_list is None:
        return index.by_number(wanted)
    names = load_file_names(image_list)
    if unlisted := [image for image in wanted if image not in names]:
        raise UsageError(f"{image_list} does not list {len(unlisted)} of the images, such as image {unlisted[0]}.")
    return index.by_file_name({image: names[image] for image in wanted})


def _prior(answers: list[tuple[str, str]]) -> dict[str, str]:
    """Question type -> its most frequent answer; among equals, the first to appear."""
    by_type = defaultdict[str, Counter[str]](Counter)
    for question_type, answer in answers:
        by_type[question_type][answer] += 1
    return {question_type: counts.most_common(1)[0][0] for question_type, counts in by_type.items()}
