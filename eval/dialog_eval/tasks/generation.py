"""Texts that models write about images: answers of VQA, captions, whether a statement follows.

Each writer (see `dialog_eval.writers`) is measured on images and, beside it,

    blind           on what it reads of an image, in the mean over all of them, in every image's place
    from captions   decoders of train/close.py: on the mean vector (of unit length) of an image's true captions: what
                    there is to reach, where nothing is lost between the modalities

Entailment: each question of VQA gives two statements, the question with the answer given most often and with a wrong
one, drawn from those to questions of its type that none of the ten people gave. Right are "yes" and "no".
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch.nn.functional import normalize

from dialog_eval.data.image_index import ImageSource
from dialog_eval.data.images import ImageVectors
from dialog_eval.evaluation import EvaluationTask
from dialog_eval.metrics.vqa import Mode, normalize_answer
from dialog_eval.models import Models, NewBar
from dialog_eval.results import Entry, Metric, Reference, Task
from dialog_eval.tasks.retrieval import RetrievalTask, load_retrieval
from dialog_eval.tasks.vqa import Measure, VqaOptions, VqaTask, load_vqa_task
from dialog_eval.writers import Asked, Contexts, Seen, contexts, suffixes
from dialog_gen.clip.base import TextWriter, WritingTask
from dialog_gen.clip.close.layout import CONTRADICTS, FOLLOWS
from dialog_gen.core.errors import MissingExtraError, UsageError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What is written, and how answers are judged."""

    tasks: tuple[WritingTask, ...] = ("vqa",)
    beams: int = 5
    max_tokens: int = 32
    measure: Measure = "official"
    mode: Mode = "official"

    @classmethod
    def of(cls, tasks: str, **others: Any) -> "GenerationOptions":
        """With tasks as they are typed. Raises UsageError for an unknown one."""
        names = [name.strip() for name in tasks.split(",")]
        for name in names:
            if name not in get_args(WritingTask):
                raise UsageError(f"--tasks {tasks}: unknown task {name!r}: {did_you_mean(name, get_args(WritingTask))}")
        return cls(tasks=tuple(task for task in get_args(WritingTask) if task in names), **others)


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """Texts to write, and what they are worth."""

    name: WritingTask
    task: Task
    dataset: str
    protocol: str
    source: ImageSource
    asked: list[Asked]
    captions: dict[str, list[str]] | None
    """The source's id of an image -> its captions; None where there are none to generate from."""
    judge: Callable[[list[str]], list[Metric]]
    """The texts, one each of `asked`, to measures."""
    references: list[Reference]
    options: GenerationOptions

    @property
    def image_ids(self) -> list[str]:
        """The source's ids of the images, each once."""
        return list(dict.fromkeys(asked.image_id for asked in self.asked))

    def evaluate(self, models: Models, images: ImageVectors, new_bar: NewBar) -> tuple[list[Entry], list[Reference]]:
        """The measures of each writer: on images, blind, and from captions where there are some and it can.

        Raises UsageError for a writer that was not made for the task.
        """
        writers = [variant.clip.writer(models.device) for variant in models.variants]
        for variant, writer in zip(models.variants, writers, strict=True):
            if self.name not in writer.tasks:
                raise UsageError(f"{variant.label} does no {self.name}: leave it out of --tasks.")
        guises = sum(len(suffixes(writer, self.captions is not None)) for writer in writers)
        advance = new_bar(self.task, len(self.asked) * guises)
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
            seen = Seen(
                image_ids=self.image_ids,
                source=self.source,
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
                entry = variant.entry(self.task, self.dataset, self.protocol, metrics, label_suffix=suffix)
                entries.append(entry.model_copy(update={"noise": writer.noise}))
        return entries, self.references

    def _write(
        self,
        writer: TextWriter,
        images: Contexts,
        texts: list[str],
        batch_size: int,
        advance: Callable[[float], None],
    ) -> None:
        """Fills in the texts about some of the images."""
        rows = {image_id: row for row, image_id in enumerate(images.image_ids)}
        # Prompts of one length together: a batch costs what its longest prompt costs.
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
                written = writer.write(values, asked, beams=self.options.beams, max_tokens=self.options.max_tokens)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
            advance(len(numbers))


def load_generation(
    source: ImageSource,
    options: GenerationOptions,
    *,
    questions: Path | None = None,
    annotations: Path | None = None,
    captions: Path | None = None,
    train_annotations: Path | None = None,
    image_list: Path | None = None,
    split: str | None = None,
    captions_per_image: int | None = 5,
) -> list[EvaluationTask]:
    """The tasks of `options`, in their order; the files are those of `load_vqa_task` and `load_retrieval`.

    Raises UsageError for a file that a task needs and that is not given, images of questions that have no captions
    where there are captions, and what these two refuse.
    """
    described = (
        load_retrieval(captions, source, captions_per_image=captions_per_image, split=split) if captions else None
    )
    texts = {described.source_ids[i]: some for i, some in described.captions.items()} if described else None
    common: dict[str, Any] = {"captions": texts, "source": source, "options": options}
    vqa = None
    if questions is not None and annotations is not None:
        wanted = VqaOptions(candidates="any", measure=options.measure, mode=options.mode)
        files = {"train_annotations": train_annotations, "image_list": image_list}
        vqa = load_vqa_task(questions, annotations, source, wanted, **files)
        if texts is not None and (missing := [image for image in vqa.image_ids if image not in texts]):
            raise UsageError(
                f"{captions} has no captions of {len(missing)} images of {questions}, such as {missing[0]}."
            )
    tasks: list[EvaluationTask] = []
    for name in options.tasks:
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
    def judge(texts: list[str]) -> list[Metric]:
        return vqa.metrics([vqa.judge(text, item) for text, item in zip(texts, vqa.items, strict=True)])

    return GenerationTask(
        name="vqa",
        task="vqa",
        dataset=vqa.dataset,
        protocol=vqa.protocol,
        asked=[Asked(image_id=vqa.source_ids[i.image_id], task="vqa", question=i.question) for i in vqa.items],
        judge=judge,
        references=vqa.references(),
        **common,
    )


def _entailment(vqa: VqaTask, common: dict[str, Any]) -> GenerationTask:
    by_type = defaultdict[str, list[str]](list)
    for item in vqa.items:
        by_type[item.question_type].append(item.answer)
    asked, right, groups = list[Asked](), list[str](), list[int]()
    for item in vqa.items:
        given = {normalize_answer(answer) for answer in (item.answer, *item.answers)}
        others = [answer for answer in by_type[item.question_type] if normalize_answer(answer) not in given]
        if not others:
            continue
        for answer, label in ((item.answer, FOLLOWS), (random.Random(item.question_id).choice(others), CONTRADICTS)):
            image_id = vqa.source_ids[item.image_id]
            asked.append(Asked(image_id=image_id, task="entailment", question=item.question, answer=answer))
            right.append(label)
            groups.append(item.image_id)
    if not asked:
        raise UsageError("entailment: no question has another answer to questions of its type to be wrong.")

    def judge(texts: list[str]) -> list[Metric]:
        hits = [float(text.casefold() == label) for text, label in zip(texts, right, strict=True)]
        sides = {label: [n for n, other in enumerate(right) if other == label] for label in (FOLLOWS, CONTRADICTS)}
        metrics = [Metric.of("accuracy", hits, groups)]
        for label, some in sides.items():
            metrics.append(Metric.of(f"accuracy, {label}", [hits[n] for n in some], [groups[n] for n in some]))
        return metrics

    return GenerationTask(
        name="entailment",
        task="entailment",
        dataset=vqa.dataset,
        protocol=f"{len(asked)} statements, half of them true",
        asked=asked,
        judge=judge,
        references=[],
        **common,
    )


def _captioning(described: RetrievalTask, common: dict[str, Any]) -> GenerationTask:
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
        task="captioning",
        dataset=described.dataset,
        protocol=f"mean of each caption's score, {described.protocol}",
        asked=[Asked(image_id=described.source_ids[image], task="captioning") for image in images],
        judge=judge,
        references=[],
        **common,
    )
