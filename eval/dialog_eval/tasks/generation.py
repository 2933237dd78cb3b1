"""Texts that models write about images: answers of VQA, captions, whether a statement follows.

Each writer (see `dialog_eval.writers`) is measured on images, and also

    blind           with the mean over all images of its input, in place of every image
    from captions   for decoders of train/close.py: with the mean vector (of unit length) of an image's true captions;
                    an upper bound, as no modality gap has to be bridged

Entailment: each question of VQA gives two statements: the question with its most frequent answer, and the question with
a wrong answer. The wrong answer is drawn from the answers to questions of the same type that none of the ten people
gave. The right outputs are "yes" and "no".
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from dialog_eval.metrics.vqa import normalize_answer
from dialog_eval.results import Entry, Metric, Reference
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition
from dialog_eval.tasks.retrieval import (
    CAPTIONS_HELP,
    CaptionsPerImage,
    RetrievalTask,
    Split,
    load_retrieval,
    parse_captions_per_image,
)
from dialog_eval.tasks.vqa import (
    ImageList,
    MetricOption,
    ModeOption,
    TrainAnnotations,
    VqaOptions,
    VqaTask,
    load_vqa_task,
)
from dialog_gen.core.errors import MissingExtraError, UsageError, did_you_mean
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models
    from dialog_eval.writers import Contexts, TextRequest
    from dialog_gen.clip.base import Clip, TextWriter, WritingTask

# As in CLOSE's published code (arXiv 2211.09778).
_MAX_TOKENS: "dict[WritingTask, int]" = {"vqa": 16, "captioning": 32, "entailment": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """The texts to generate, and how answers are judged."""

    tasks: Annotated[str, typer.Option(help="One or more of vqa, captioning and entailment, separated by commas.")] = (
        "vqa"
    )
    questions: Annotated[Path | None, typer.Option(help="VQAv1 questions JSON, for vqa and entailment.")] = None
    annotations: Annotated[Path | None, typer.Option(help="VQAv1 annotations JSON of the same split.")] = None
    captions: Annotated[
        Path | None,
        typer.Option(help=f"For captioning; with it, texts are also generated from captions. {CAPTIONS_HELP}"),
    ] = None
    split: Split = None
    captions_per_image: CaptionsPerImage = "5"
    beams: Annotated[int, typer.Option(min=1, help="Number of beams in the search.")] = 5
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum number of tokens of a text. Default: 16 for vqa, 32 for captioning, 8 for entailment."
        ),
    ] = None
    metric: MetricOption = "official"
    mode: ModeOption = "official"
    train_annotations: TrainAnnotations = None
    image_list: ImageList = None

    def task_names(self) -> "tuple[WritingTask, ...]":
        """The selected tasks, each once, in a fixed order. Raises UsageError for an unknown one."""
        from dialog_gen.clip.base import WritingTask

        known: tuple[WritingTask, ...] = get_args(WritingTask)
        names = [name.strip() for name in self.tasks.split(",")]
        for name in names:
            if name not in known:
                raise UsageError(f"--tasks {self.tasks}: unknown task {name!r}: {did_you_mean(name, known)}")
        return tuple(task for task in known if task in names)


@TASKS.register("generate")
class Generation(TaskDefinition[GenerationOptions]):
    """The task "generate": texts written by models."""

    description = (
        "What text decoders (CLOSE, MaMMUT) write: answers, captions, and whether a statement follows from the image."
    )
    example = (
        "dialog-eval generate --checkpoint close/model --images val2014/ --captions "
        "captions_val2014.json --out results.json"
    )
    options_type = GenerationOptions
    presentations = (
        Presentation(task="captioning", title="Captioning", headlines={"BLEU": "captioning, BLEU"}),
        Presentation(task="entailment", title="Entailment", headlines={"accuracy": "entailment"}),
    )

    def __init__(self, options: GenerationOptions) -> None:
        super().__init__(options)
        options.task_names()
        parse_captions_per_image(options.captions_per_image)

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads the files of the tasks in `options.tasks`."""
        return [*load_generation(self.options, index)]

    def open_model(self, name: str, pretrained: str | None) -> "Clip":
        """Opens the model of a folder. Raises UsageError for a model that writes no texts."""
        from dialog_eval.writers import open_writer

        return open_writer(name, pretrained)


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """A list of texts to write, and how they are judged."""

    name: "WritingTask"
    dataset: str
    protocol: str
    index: "ImageIndex"
    asked: "list[TextRequest]"
    captions: dict[str, list[str]] | None
    """Id of an image in the index -> its captions; None if there are no captions to generate from."""
    judge: Callable[[list[str]], list[Metric]]
    """Computes the measures from the texts, which correspond to `asked`."""
    references: list[Reference]
    options: GenerationOptions
    notes: Callable[[list[Metric]], list[str]] = lambda metrics: []
    """What to know about the measures."""

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images in the index, each once."""
        return list(dict.fromkeys(asked.image_id for asked in self.asked))

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> tuple[list[Entry], list[Reference]]:
        """Measures each writer on images, blind, and from captions if there are captions and the writer reads vectors.

        Raises UsageError for a writer that was not trained for the task.
        """
        import torch
        from torch.nn.functional import normalize

        from dialog_eval.writers import WriterImages, contexts, suffixes

        writers = [variant.clip.writer(models.device) for variant in models.variants]
        for variant, writer in zip(models.variants, writers, strict=True):
            if self.name not in writer.tasks:
                raise UsageError(f"{variant.label} does no {self.name}: leave it out of --tasks.")
        runs = sum(len(suffixes(writer, self.captions is not None)) for writer in writers)
        advance = counter(on_progress, self.name, len(self.asked) * runs, self.name)
        described = None
        if self.captions is not None and any(writer.reads_vectors for writer in writers):
            described = [self.captions[image_id] for image_id in self.image_ids]
        encoded = models.encode_texts([text for some in described for text in some]) if described else []
        entries: list[Entry] = []
        for variant, writer in zip(models.variants, writers, strict=True):
            means = None
            if described:
                parts = models.text_vectors(variant, encoded).split([len(some) for some in described])
                means = normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)
            seen = WriterImages(
                image_ids=self.image_ids,
                index=self.index,
                models=models,
                variant=variant,
                vectors=images,
                described=means,
            )
            written = {suffix: [""] * len(self.asked) for suffix in suffixes(writer, described is not None)}
            for some in contexts(writer, seen):
                self._write(writer, some, written[some.suffix], models.batch_size, advance)
            for suffix, texts in written.items():
                metrics = self.judge(texts)
                entry = variant.entry(self.name, self.dataset, self.protocol, metrics, label_suffix=suffix)
                update = {"noise": writer.noise, "notes": self.notes(metrics)}
                entries.append(entry.model_copy(update=update))
        return entries, self.references

    def _write(
        self,
        writer: "TextWriter",
        images: "Contexts",
        texts: list[str],
        batch_size: int,
        advance: Callable[[float], None],
    ) -> None:
        """Writes the texts about some of the images into `texts`."""
        import torch

        rows = {image_id: row for row, image_id in enumerate(images.image_ids)}
        length = self.options.max_tokens or _MAX_TOKENS[self.name]
        # Prompts of similar length share a batch, because the longest prompt determines its cost.
        order = sorted(
            (number for number, asked in enumerate(self.asked) if asked.image_id in rows),
            key=lambda number: len(self.asked[number].question + self.asked[number].answer),
        )
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            asked = [self.asked[number] for number in numbers]
            own = [rows[one.image_id] for one in asked]
            values = images.values[torch.tensor(own, device=images.values.device)]
            with torch.inference_mode():
                written = writer.write(values, asked, beams=self.options.beams, max_tokens=length)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
            advance(len(numbers))


def load_generation(options: GenerationOptions, index: "ImageIndex") -> list[GenerationTask]:
    """Builds the tasks of `options.tasks`; the files are those of `load_vqa_task` and `load_retrieval`.

    Raises UsageError if a file that a task needs is missing, if captions are given but lack images of questions, and as
    these two functions do.
    """
    described = None
    if options.captions is not None:
        per_image = parse_captions_per_image(options.captions_per_image)
        described = load_retrieval(options.captions, index, captions_per_image=per_image, split=options.split)
    texts = {described.source_ids[i]: some for i, some in described.captions.items()} if described else None
    common: dict[str, Any] = {"captions": texts, "index": index, "options": options}
    vqa = None
    if options.questions is not None and options.annotations is not None:
        asked = VqaOptions(
            questions=options.questions,
            annotations=options.annotations,
            metric=options.metric,
            mode=options.mode,
            train_annotations=options.train_annotations,
            image_list=options.image_list,
        )
        vqa = load_vqa_task(asked, index, any_answer=True)
        if texts is not None and (missing := [image for image in vqa.image_ids if image not in texts]):
            raise UsageError(
                f"{options.captions} has no captions of {count_of(len(missing), 'image')} of "
                f"{options.questions}, such as "
                f"{missing[0]}."
            )
    tasks: list[GenerationTask] = []
    for name in options.task_names():
        if name == "captioning":
            if described is None:
                raise UsageError("captioning needs --captions.")
            tasks.append(_captioning(described, common))
        elif vqa is None:
            raise UsageError(f"{name} needs both --questions and --annotations.")
        else:
            tasks.append(_answering(vqa, common) if name == "vqa" else _entailment(vqa, common))
    return tasks


def _answering(vqa: VqaTask, common: dict[str, Any]) -> GenerationTask:
    from dialog_eval.writers import TextRequest

    def judge(texts: list[str]) -> list[Metric]:
        return vqa.metrics([vqa.judge(text, item) for text, item in zip(texts, vqa.items, strict=True)])

    return GenerationTask(
        name="vqa",
        dataset=vqa.dataset,
        protocol=vqa.protocol,
        asked=[TextRequest(image_id=vqa.source_ids[i.image_id], task="vqa", question=i.question) for i in vqa.items],
        judge=judge,
        references=vqa.references(),
        notes=vqa.notes,
        **common,
    )


def _entailment(vqa: VqaTask, common: dict[str, Any]) -> GenerationTask:
    from dialog_eval.writers import TextRequest
    from dialog_train.systems.close.examples import CONTRADICTS, FOLLOWS

    by_type = defaultdict[str, list[str]](list)
    for item in vqa.items:
        by_type[item.question_type].append(item.answer)
    asked, right, groups = list[TextRequest](), list[str](), list[int]()
    for item in vqa.items:
        given = {normalize_answer(answer) for answer in (item.answer, *item.answers)}
        others = [answer for answer in by_type[item.question_type] if normalize_answer(answer) not in given]
        if not others:
            continue
        for answer, label in ((item.answer, FOLLOWS), (random.Random(item.question_id).choice(others), CONTRADICTS)):
            image_id = vqa.source_ids[item.image_id]
            asked.append(TextRequest(image_id=image_id, task="entailment", question=item.question, answer=answer))
            right.append(label)
            groups.append(item.image_id)
    if not asked:
        raise UsageError("entailment: no question type has a second answer, which could be a wrong one.")

    def judge(texts: list[str]) -> list[Metric]:
        hits = [float(text.casefold() == label) for text, label in zip(texts, right, strict=True)]
        sides = {label: [n for n, other in enumerate(right) if other == label] for label in (FOLLOWS, CONTRADICTS)}
        metrics = [Metric.of("accuracy", hits, groups)]
        for label, some in sides.items():
            metrics.append(Metric.of(f"accuracy, {label}", [hits[n] for n in some], [groups[n] for n in some]))
        return metrics

    return GenerationTask(
        name="entailment",
        dataset=vqa.dataset,
        protocol=f"{len(asked)} statements, half of them true",
        asked=asked,
        judge=judge,
        references=[],
        **common,
    )


def _captioning(described: RetrievalTask, common: dict[str, Any]) -> GenerationTask:
    from dialog_eval.writers import TextRequest

    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise MissingExtraError("captioning", "eval") from None
    images, truth = list(described.captions), list(described.captions.values())
    bleu, chrf = BLEU(effective_order=True, lowercase=True), CHRF(lowercase=True)

    def judge(texts: list[str]) -> list[Metric]:
        def each(score: Callable[[str, Sequence[str]], float]) -> list[float]:
            return [score(text, some) for text, some in zip(texts, truth, strict=True)]

        return [
            Metric.of("BLEU", each(lambda text, some: bleu.sentence_score(text, some).score / 100), images),
            Metric.of("chrF", each(lambda text, some: chrf.sentence_score(text, some).score / 100), images),
            Metric.of("exact match", each(lambda text, some: text.casefold() in {t.casefold() for t in some}), images),
        ]

    return GenerationTask(
        name="captioning",
        dataset=described.dataset,
        protocol=f"mean of each caption's score, {described.protocol}",
        asked=[TextRequest(image_id=described.source_ids[image], task="captioning") for image in images],
        judge=judge,
        references=[],
        **common,
    )
