"""VQA (arXiv 1505.00468, 1612.00837) for models that compare images with texts: the best-scoring candidate answers.

`--score` says what a candidate's score consists of (`dialog_eval.asking.ways`). By default it is the cosine of the
image and the text of question and candidate.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import typer

from dialog_eval.asking.figures import ALWAYS_YES, VqaFigures
from dialog_eval.asking.ways import AskingOptions, Calibrate, Way
from dialog_eval.data.coco import load_file_names
from dialog_eval.data.vqa import CHOICES, VqaItem, load_answers, load_vqa
from dialog_eval.examples import draw_examples
from dialog_eval.metrics.vqa import Mode, normalize_answer, vqa_accuracy
from dialog_eval.results import Entry, Example, Examples, Metric, Reference, Shown
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition, dataset_name
from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from dialog_eval.asking.scores import Indices, Prior
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
    Path | None, typer.Option(help="VQA annotations of a training split, for top answers and question-type prior.")
]
ImageList = Annotated[
    Path | None,
    typer.Option(help="COCO file whose `images` name the files. Default: use the digits at the end of image ids."),
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaOptions:
    """The questions, and how answers are chosen and judged."""

    questions: Annotated[Path, typer.Option(help="VQA questions JSON, of v1 or v2.")]
    annotations: Annotated[Path, typer.Option(help="VQA annotations JSON of the same split.")]
    candidates: Annotated[
        Candidates, typer.Option(help="Each question's 18 choices, or the most frequent answers of training.")
    ] = "mc18"
    metric: MetricOption = "official"
    mode: ModeOption = "official"
    dialogue_format: Annotated[
        DialogueFormat,
        typer.Option("--format", help="How question and answer become one text; use the format of the training."),
    ] = "question_answer"
    score: Annotated[
        str | None,
        typer.Option(
            metavar="WAYS",
            help="Ways of asking, separated by commas. A way is similarity (question and answer) or statement (both as "
            "one sentence), joined by + with debias, prior and filter, such as similarity,statement+prior. "
            "debias:text and others name what debias subtracts. Default: similarity.",
        ),
    ] = None
    calibrate: Annotated[
        Calibrate,
        typer.Option(
            help="What a debias without a kind subtracts: a candidate's score with the mean image, the question alone, "
            "noise images, or its nearest images in --dialogues, without these in --images (the default). Without "
            "--score, it adds debias."
        ),
    ] = "none"
    dialogues: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="Dialogues dataset: prior counts its answers, debias compares with its images, statement takes its "
            "statements, if it has some. A tenth of its images is held out to choose weights.",
        ),
    ] = None
    held_out: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Choose weights on this dialogues dataset, not on a part of --dialogues."),
    ] = None
    prior_weight: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Weight of prior. Default: auto, chosen on held-out dialogues, or 1."),
    ] = None
    debias_weight: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Weight of debias. Default: auto with --dialogues; otherwise 1, or 0.75 for nearest.",
        ),
    ] = None
    prior_model: Annotated[
        Path | None,
        typer.Option(help="Folder of a causal language model, whose probability of the answer is the prior."),
    ] = None
    train_annotations: TrainAnnotations = None
    image_list: ImageList = None

    def asking(self) -> AskingOptions:
        """The ways of asking. Raises UsageError for flags that contradict one another."""
        return AskingOptions.of_flags(
            score=self.score,
            calibrate=self.calibrate,
            dialogues=self.dialogues,
            held_out=self.held_out,
            prior_model=self.prior_model,
            debias_weight=self.debias_weight,
            prior_weight=self.prior_weight,
        )


@TASKS.register("vqa")
class Vqa(TaskDefinition[VqaOptions]):
    """The task "vqa": answers chosen from candidates."""

    description = (
        "Accuracy on VQA v1 or v2, over all questions and for each type of answer, with references that need no image."
    )
    example = (
        "dialog-eval vqa --checkpoint draft/model --images val2014/ --questions MultipleChoice_val2014_questions.json "
        "--annotations v1_val2014_annotations.json --out results.json"
    )
    options_type = VqaOptions
    presentations = (
        Presentation(
            task="vqa",
            title="Visual question answering",
            short_title="VQA",
            headlines={"accuracy": "VQA, {protocol}"},
            about="VQA: visual question answering. MC-18: the model chooses among 18 answers. Official accuracy: an "
            "answer counts in full if 3 of 10 people gave it.",
        ),
        Presentation(task="vqa-types", title="Visual question answering by question type"),
    )
    in_sweep = True

    def __init__(self, options: VqaOptions) -> None:
        super().__init__(options)
        options.asking()

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads questions and annotations, and looks for the dialogues."""
        self.options.asking().check_sources()
        return [load_vqa_task(self.options, index)]


@dataclass(frozen=True, kw_only=True)
class VqaTask:
    """The questions of a split and their answers."""

    dataset: str
    protocol: str
    """Without the way of asking."""
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
        """Computes accuracy by types of answers and of questions, for each way of asking; unblended models also blind.

        The blind run sees the mean image in place of every image. From it the mean image is not subtracted, because all
        its scores would be 0.
        """
        from dialog_eval.asking.scores import Question, best_candidates
        from dialog_eval.asking.setup import prepare
        from dialog_train.data.training_set import DIALOGUE_FORMATS

        options = self.options.asking()
        if options.ways != (Way(),) and len(models.alone) < 2:
            _log.warning("no --baseline: what the way of asking gains cannot be told from what a training gained")
        prepared = prepare(
            options, DIALOGUE_FORMATS[self.options.dialogue_format], models, images, self.image_ids, on_progress
        )
        chosen = best_candidates(
            models,
            images,
            [Question(self.source_ids[item.image_id], item.question, self.candidates(item)) for item in self.items],
            prepared.asking,
            prepared.weights,
            advance=counter(on_progress, "questions", len(self.items), "questions"),
        )
        accuracy = self._accuracy(chosen)
        without_image = self._without_image(prepared.asking.prior, prepared.prior_name)
        known = {name: self._figures.by_answer(values) for name, values in without_image.items()}
        entries, by_question = dict[tuple[str, str], Entry](), list[Entry]()
        for number, way in enumerate(options.ways):
            protocol = self._protocol(way, prepared.sentences)
            for place, variant in enumerate(models.variants):
                sighted, blind = accuracy[number, place].tolist()
                entry = partial(variant.entry, dataset=self.dataset)
                blind_metrics = self._figures.by_answer(blind)
                metrics = self._figures.by_answer(sighted)
                more: dict[str, Any] = {"asked": prepared.asked[number][place]}
                if way.prior and prepared.prior_note is not None:
                    more["notes"] = [prepared.prior_note]
                if variant is models.tuned:
                    answers, values = chosen[number, [place, 0], 0], accuracy[number, [place, 0], 0]
                    more["examples"] = self._examples(models.alone[0].label, answers, values)
                found = [entry("vqa", protocol=protocol, metrics=metrics).model_copy(update=more)]
                if any(variant is alone for alone in models.alone):
                    without = {**known, "the model blind": blind_metrics}
                    found[0].notes.extend(self._figures.notes(metrics, without))
                    found.append(entry("vqa", protocol=protocol, metrics=blind_metrics, label_suffix=", blind"))
                    types = self._figures.by_question(sighted)
                    by_question.append(entry("vqa-types", protocol=protocol, metrics=types))
                for one in found:
                    entries.setdefault((one.label, one.protocol), one)
        return [*entries.values(), *by_question], self.references(without_image)

    def _examples(self, baseline: str, answers: "Indices", values: npt.NDArray[np.float64]) -> Examples:
        """Questions on which a model and the baseline differ.

        `answers` and `values`: (2 models, questions): indices of the answers of the model and of the baseline, and
        their accuracy.
        """

        def build(places: Sequence[int]) -> list[Example]:
            return [
                Example(
                    item=Shown(text=item.question, image_id=self.source_ids[item.image_id]),
                    right=Shown(text=item.answer),
                    answer=Shown(text=self.candidates(item)[answers[0, place]]),
                    baseline_answer=Shown(text=self.candidates(item)[answers[1, place]]),
                )
                for place in places
                for item in (self.items[place],)
            ]

        return draw_examples("accuracy", baseline, values[0], values[1], build)

    def _accuracy(self, chosen: "Indices") -> npt.NDArray[np.float64]:
        """The accuracy of answers, from the indices (..., questions) of the candidates that were chosen."""
        values = np.empty(chosen.shape)
        for number, item in enumerate(self.items):
            candidates, of_question = self.candidates(item), chosen[..., number]
            right = {index: self.judge(candidates[index], item) for index in np.unique(of_question).tolist()}
            values[..., number] = np.vectorize(right.__getitem__, otypes=[float])(of_question)
        return values

    def _protocol(self, way: Way, sentences: str | None) -> str:
        """The protocol of a way of asking."""
        parts = [way.text, *way.others]
        asked = "" if parts == ["similarity"] else f", asked by {' + '.join(parts)}"
        if way.prior and self.options.prior_model is not None:
            asked += f" of {self.options.prior_model.name}"
        if way.text == "statement" and sentences is not None:
            asked += f", sentences of {sentences}"
        # Without dialogues, the references are the images of the test themselves.
        own = " of the test" if way.debias == "nearest" and self.options.dialogues is None else ""
        return f"{self.protocol}{asked}" + (f", calibrated by {way.debias}{own}" if way.debias else "")

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
        return self._figures.by_answer(accuracy)

    def notes(self, metrics: Sequence[Metric]) -> list[str]:
        """Notes on figures, as `metrics` returns them, that are not above those of answers without the image."""
        known = {name: self.metrics(accuracy) for name, accuracy in self._without_image().items()}
        return self._figures.notes(metrics, known)

    def references(self, without_image: "Mapping[str, Sequence[float]] | None" = None) -> list[Reference]:
        """The accuracy of answers that need no image, in `without_image` or those that need no model either."""
        return [
            Reference(name=name, task="vqa", dataset=self.dataset, metric=metric, value=float(np.mean(values)))
            for name, accuracy in (without_image or self._without_image()).items()
            for metric, values in {
                "accuracy": accuracy,
                **{metric: [accuracy[i] for i in some] for metric, some in self._figures.answer_types.items()},
            }.items()
        ]

    def _without_image(self, prior: "Prior | None" = None, prior_name: str | None = None) -> dict[str, list[float]]:
        """Name -> accuracy of each question, of answers that need no image.

        They are always "yes", the question type's most frequent answer, and the most likely candidate by `prior`. An
        answer that is not a candidate counts as wrong.
        """
        answers = {
            ALWAYS_YES: ["yes"] * len(self.items),
            self.prior_name: [self.prior.get(item.question_type) for item in self.items],
        }
        if prior is not None and prior_name is not None:
            best: dict[tuple[str, tuple[str, ...]], str] = {}
            for item in self.items:
                key = item.question, self.candidates(item)
                if key not in best:
                    best[key] = key[1][int(prior.log_probabilities(*key).argmax())]
            answers[prior_name] = [best[item.question, self.candidates(item)] for item in self.items]
        return {
            name: [
                self.judge(answer, item) if answer is not None and self._can_be_said(answer, item) else 0.0
                for answer, item in zip(some, self.items, strict=True)
            ]
            for name, some in answers.items()
        }

    def _can_be_said(self, answer: str, item: VqaItem) -> bool:
        return self.any_answer or answer in self.candidates(item)

    @cached_property
    def _figures(self) -> VqaFigures:
        return VqaFigures(self.items)


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
                f"{questions} has no multiple_choices: give the MultipleChoice questions, which only VQA v1 has, or "
                "--candidates top1000."
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
