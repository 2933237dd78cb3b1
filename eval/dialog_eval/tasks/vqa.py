"""VQAv1 (arXiv 1505.00468) for models that compare images with texts: the best candidate answer is the answer.

A candidate's score is the cosine of the image with the text of question and candidate. Calibrated, what the text scores
without the image is subtracted: its cosine with the mean image (of unit length), or with the question alone.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from dialog_eval.data.coco import load_file_names
from dialog_eval.data.image_index import ImageSource
from dialog_eval.data.images import ImageVectors
from dialog_eval.data.vqa import CHOICES, VqaItem, load_answers, load_vqa
from dialog_eval.evaluation import dataset_name
from dialog_eval.metrics.vqa import Mode, normalize_answer, vqa_accuracy
from dialog_eval.models import Models, NewBar
from dialog_eval.results import Entry, Metric, Reference
from dialog_eval.tasks.vqa_scores import Asked, Calibration, best_candidates
from dialog_gen.core.errors import UsageError
from dialog_train.data.training_set import DIALOGUE_FORMATS, DialogueFormat

Candidates = Literal["mc18", "top1000", "top3129", "any"]
Measure = Literal["official", "exact"]

_ANSWER_TYPES = ("yes/no", "number", "other")


@dataclass(frozen=True, slots=True)
class VqaOptions:
    """How answers are chosen and judged."""

    candidates: Candidates = "mc18"
    """The 18 choices of each question, the most frequent answers of the training annotations, or, for models that write
    answers, any."""
    measure: Measure = "official"
    """Agreement with ten people, or equality with the answer given most often."""
    mode: Mode = "official"
    """How answers are normalised: see `dialog_eval.metrics.vqa`."""
    dialogue_format: DialogueFormat = "question_answer"
    calibration: Calibration = "none"


@dataclass(frozen=True, kw_only=True)
class VqaTask:
    """Questions with candidate answers."""

    dataset: str
    protocol: str
    """Without the calibration."""
    items: list[VqaItem]
    top_answers: tuple[str, ...]
    """The candidates of every question; none where each has its own."""
    source_ids: dict[int, str]
    """VQA's image id -> the source's."""
    prior: dict[str, str]
    """Question type -> its most frequent answer."""
    prior_name: str
    options: VqaOptions

    @property
    def image_ids(self) -> list[str]:
        """The source's ids of the images, each once, in the questions' order."""
        return list(dict.fromkeys(self.source_ids[item.image_id] for item in self.items))

    def evaluate(self, models: Models, images: ImageVectors, new_bar: NewBar) -> tuple[list[Entry], list[Reference]]:
        """Accuracy, over all questions and for each type of answer; that of the two models, not of blends, blind too.

        The blind run sees the mean image in every image's place. It is not calibrated by it: nothing would be left.
        """
        chosen = best_candidates(
            models,
            images,
            [Asked(self.source_ids[item.image_id], item.question, self.candidates(item)) for item in self.items],
            text_format=DIALOGUE_FORMATS[self.options.dialogue_format],
            calibration=self.options.calibration,
            advance=new_bar("questions", len(self.items)),
        )
        values = np.empty(chosen.shape)  # (variants, sighted or blind, questions)
        for number, item in enumerate(self.items):
            candidates = self.candidates(item)
            of_question = chosen[..., number]
            right = {index: self.judge(candidates[index], item) for index in np.unique(of_question).tolist()}
            values[..., number] = np.vectorize(right.__getitem__, otypes=[float])(of_question)
        calibration = self.options.calibration
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
        """The answers that a question can get; none where it can get any."""
        return self.top_answers or item.choices

    def judge(self, answer: str, item: VqaItem) -> float:
        """How right an answer is, 0 to 1."""
        if self.options.measure == "official":
            return vqa_accuracy(answer, item.answers, self.options.mode)
        return float(normalize_answer(answer, self.options.mode) == normalize_answer(item.answer, self.options.mode))

    def metrics(self, accuracy: Sequence[float]) -> list[Metric]:
        """The measures that the accuracy of each question gives."""
        groups = [item.image_id for item in self.items]
        metrics = [Metric.of("accuracy", accuracy, groups)]
        for name, places in self._answer_types.items():
            metrics.append(Metric.of(name, [accuracy[i] for i in places], [groups[i] for i in places]))
        return metrics

    def _can_be_said(self, answer: str, item: VqaItem) -> bool:
        return self.options.candidates == "any" or answer in self.candidates(item)

    @cached_property
    def _answer_types(self) -> dict[str, list[int]]:
        """Name of the metric -> its questions."""
        places: dict[str, list[int]] = {name: [] for name in _ANSWER_TYPES}
        for place, item in enumerate(self.items):
            places.setdefault(item.answer_type, []).append(place)
        return {f"accuracy, {name}": some for name, some in places.items() if some}

    def references(self) -> list[Reference]:
        """What needs no image."""
        references: list[Reference] = []
        for name, answers in (
            ('always "yes"', ["yes"] * len(self.items)),
            (self.prior_name, [self.prior.get(item.question_type) for item in self.items]),
        ):
            # What is no candidate cannot be said.
            accuracy = [
                self.judge(answer, item) if answer is not None and self._can_be_said(answer, item) else 0.0
                for answer, item in zip(answers, self.items, strict=True)
            ]
            for metric, places in {"accuracy": range(len(self.items)), **self._answer_types}.items():
                value = float(np.mean([accuracy[i] for i in places]))
                references.append(Reference(name=name, task="vqa", dataset=self.dataset, metric=metric, value=value))
        return references


def load_vqa_task(
    questions: Path,
    annotations: Path,
    source: ImageSource,
    options: VqaOptions,
    *,
    train_annotations: Path | None = None,
    image_list: Path | None = None,
) -> VqaTask:
    """The task of a split. `image_list`: a COCO file whose `images` name the files, where their ids do not.

    From `train_annotations` come the most frequent answers, of the whole and of each question type; the latter from the
    split itself where there are none.

    Raises UsageError for files that `load_vqa` refuses, candidates that the files do not give, and images that the
    source lacks or has twice.
    """
    items = load_vqa(questions, annotations)
    answers = load_answers(train_annotations) if train_annotations else None
    candidates, top_answers = _candidates(options.candidates, items, questions, answers)
    kind = "official accuracy" if options.measure == "official" else "exact match"
    protocol = [candidates, kind]
    if options.mode != "official":
        protocol.append(f"{options.mode} normalisation")
    if options.dialogue_format != "question_answer":
        protocol.append(f"format {options.dialogue_format}")
    known = answers or [(item.question_type, item.answer) for item in items]
    return VqaTask(
        dataset=dataset_name(questions, annotations),
        protocol=", ".join(protocol),
        items=items,
        top_answers=top_answers,
        source_ids=_source_ids(items, source, image_list),
        prior=_prior(known),
        prior_name="question-type prior" + ("" if answers else " (of this split)"),
        options=options,
    )


def _candidates(
    name: Candidates, items: list[VqaItem], questions: Path, answers: list[tuple[str, str]] | None
) -> tuple[str, tuple[str, ...]]:
    """How the candidates are called, and what they are where all questions have the same."""
    if name == "any":
        return "generated", ()
    if name == "mc18":
        if not items[0].choices:
            raise UsageError(
                f"{questions} has no multiple_choices: give the MultipleChoice questions, or --candidates top1000."
            )
        return f"MC-{CHOICES}", ()
    if answers is None:
        raise UsageError(f"--candidates {name} are the most frequent answers of a training split: --train-annotations.")
    most = int(name.removeprefix("top"))
    # Counter keeps the order of first appearance among equals.
    top = tuple(answer for answer, _ in Counter(answer for _, answer in answers).most_common(most))
    return f"top-{most}" + (f" ({len(top)} exist)" if len(top) < most else ""), top


def _source_ids(items: list[VqaItem], source: ImageSource, image_list: Path | None) -> dict[int, str]:
    wanted = dict.fromkeys(item.image_id for item in items)
    if image_list is None:
        return source.by_number(wanted)
    names = load_file_names(image_list)
    if unlisted := [image for image in wanted if image not in names]:
        raise UsageError(f"{image_list} lists {len(unlisted)} of the images not, such as image {unlisted[0]}.")
    return source.by_file_name({image: names[image] for image in wanted})


def _prior(answers: list[tuple[str, str]]) -> dict[str, str]:
    """Question type -> its most frequent answer, of equals the first to appear."""
    by_type = defaultdict[str, Counter[str]](Counter)
    for question_type, answer in answers:
        by_type[question_type][answer] += 1
    return {question_type: counts.most_common(1)[0][0] for question_type, counts in by_type.items()}
