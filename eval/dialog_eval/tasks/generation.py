"""Texts that decoders write about images (`train/close.py`): answers of VQA, captions, whether a statement follows.

Each decoder is measured on the vectors of images and, beside it,

    blind           on the mean image's vector (of unit length) in every image's place
    from captions   on the mean vector (of unit length) of an image's true captions: what there is to reach, where
                    nothing is lost between the modalities

Entailment: each question of VQA gives two statements, the question with the answer given most often and with a wrong
one, drawn from those to questions of its type that none of the ten people gave. Right are "yes" and "no".
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dialog_eval.evaluation import EvaluationTask
from dialog_eval.image_source import ImageSource
from dialog_eval.images import ImageVectors
from dialog_eval.models import Models, NewBar, Variant
from dialog_eval.results import Entry, Metric, Reference, Task
from dialog_eval.tasks.retrieval import RetrievalTask, load_retrieval
from dialog_eval.tasks.vqa import Measure, VqaOptions, VqaTask, load_vqa_task
from dialog_eval.vqa import Mode, normalize_answer
from dialog_gen.clip import Clip
from dialog_gen.errors import MissingExtraError, UsageError, did_you_mean
from dialog_train.close.checkpoint import Close, load_close
from dialog_train.close.config import TaskName
from dialog_train.close.examples import CONTRADICTS, FOLLOWS, PROMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What is written, and how answers are judged."""

    tasks: tuple[TaskName, ...] = ("vqa",)
    beams: int = 5
    max_tokens: int = 32
    measure: Measure = "official"
    mode: Mode = "official"

    @classmethod
    def of(cls, tasks: str, **others: Any) -> "GenerationOptions":
        """With tasks as they are typed. Raises UsageError for an unknown one."""
        names = [name.strip() for name in tasks.split(",")]
        for name in names:
            if name not in get_args(TaskName):
                raise UsageError(f"--tasks {tasks}: unknown task {name!r}: {did_you_mean(name, get_args(TaskName))}")
        return cls(tasks=tuple(task for task in get_args(TaskName) if task in names), **others)


class Decoders:
    """The decoders of an evaluation. For all that looks at images, each is the CLIP that it reads."""

    def __init__(self) -> None:
        self._opened: dict[str, Close] = {}

    def open(self, folder: str, pretrained: str | None = None) -> Clip:
        """The CLIP of a decoder, under the decoder's name and hash. Raises UsageError as `load_close` does."""
        if pretrained is not None:
            raise UsageError(f"{folder} names its CLIP itself: leave out --pretrained {pretrained}.")
        close = load_close(Path(folder))
        self._opened[close.weights_sha256] = close
        return replace(close.clip, name=Path(folder).name, weights_sha256=close.weights_sha256)

    def of(self, variant: Variant) -> Close:
        """The decoder that was opened as this model."""
        return self._opened[variant.clip.weights_sha256]


@dataclass(frozen=True, slots=True)
class Asked:
    """One text to write."""

    image_id: str
    """The source's."""
    prompt: str


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """Texts to write, and what they are worth."""

    task: Task
    dataset: str
    protocol: str
    asked: list[Asked]
    captions: dict[str, list[str]] | None
    """The source's id of an image -> its captions; None where there are none to generate from."""
    judge: Callable[[list[str]], list[Metric]]
    """The texts, one each of `asked`, to measures."""
    references: list[Reference]
    decoders: Decoders
    options: GenerationOptions

    @property
    def image_ids(self) -> list[str]:
        """The source's ids of the images, each once."""
        return list(dict.fromkeys(asked.image_id for asked in self.asked))

    def evaluate(self, models: Models, images: ImageVectors, new_bar: NewBar) -> tuple[list[Entry], list[Reference]]:
        """The measures of each decoder: on images, blind, and from captions where there are some."""
        contexts = 2 if self.captions is None else 3
        advance = new_bar(self.task, len(self.asked) * contexts * len(models.variants))
        described = None if self.captions is None else [self.captions[image_id] for image_id in self.image_ids]
        encoded = models.encode_texts([text for some in described for text in some]) if described else []
        entries: list[Entry] = []
        for variant in models.variants:
            close = self.decoders.of(variant)
            seen = images.of(variant, self.image_ids)  # (images, D)
            vectors = {"": seen, ", blind": normalize(seen.mean(0, keepdim=True), dim=-1).expand_as(seen)}
            if described:
                parts = models.text_vectors(variant, encoded).split([len(some) for some in described])
                vectors[", from captions"] = normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)
            for suffix, of_images in vectors.items():
                metrics = self.judge(self._write(close, of_images, models, advance))
                entry = variant.entry(self.task, self.dataset, self.protocol, metrics, label_suffix=suffix)
                entries.append(entry.model_copy(update={"noise": close.recipe["noise"]}))
        return entries, self.references

    def _write(self, close: Close, vectors: Tensor, models: Models, advance: Callable[[float], None]) -> list[str]:
        """`vectors`: (images, D)."""
        decoder = close.decoder.to(models.device)
        rows = {image_id: row for row, image_id in enumerate(self.image_ids)}
        texts = [""] * len(self.asked)
        # Prompts of one length together: a batch costs what its longest prompt costs.
        order = sorted(range(len(self.asked)), key=lambda number: len(self.asked[number].prompt))
        for start in range(0, len(order), models.batch_size):
            numbers = order[start : start + models.batch_size]
            own = vectors[torch.tensor([rows[self.asked[n].image_id] for n in numbers], device=vectors.device)]
            prompts = [self.asked[n].prompt for n in numbers]
            written = decoder.write(own, prompts, beams=self.options.beams, max_tokens=self.options.max_tokens)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
            advance(len(numbers))
        return texts


def load_generation(
    source: ImageSource,
    decoders: Decoders,
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
    common: dict[str, Any] = {"captions": texts, "decoders": decoders, "options": options}
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

    prompt = PROMPTS["vqa"]
    return GenerationTask(
        task="vqa",
        dataset=vqa.dataset,
        protocol=vqa.protocol,
        asked=[Asked(vqa.source_ids[i.image_id], prompt.format(question=i.question)) for i in vqa.items],
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
            prompt = PROMPTS["entailment"].format(question=item.question, answer=answer)
            asked.append(Asked(vqa.source_ids[item.image_id], prompt))
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
        task="captioning",
        dataset=described.dataset,
        protocol=f"mean of each caption's score, {described.protocol}",
        asked=[Asked(described.source_ids[image], PROMPTS["captioning"]) for image in images],
        judge=judge,
        references=[],
        **common,
    )
