"""Benchmarks of compositional understanding and negation: the right one of a few texts, or of a few images.

A benchmark (`dialog_eval.data.choices`) gives items, each a few images and a few texts, and the rules
(`dialog_eval.metrics.choice`) that the cosines between them must pass.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, RuleName, files_of
from dialog_eval.examples import draw_examples
from dialog_eval.metrics.intervals import values_of_mean_over_parts
from dialog_eval.results import Entry, Example, Examples, Metric, Reference, Shown, unused_name
from dialog_eval.tasks.base import TASKS, EvaluationTask, Presentation, TaskDefinition, digits_of
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, counter

if TYPE_CHECKING:
    from torch import Tensor

    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.metrics.choice import Scores
    from dialog_eval.models import Models, Variant

_log = logging.getLogger(__name__)

_TEXTS_PER_BUNDLE = 16_384
_OVER_PARTS = "mean over parts"
_IMPOSSIBLE = "cannot be passed, because a right text is among the wrong ones, or an image or a text is there twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOptions:
    """The benchmark and its files."""

    benchmark: Annotated[str, typer.Option(help="Such as sugarcrepe or winoground; an unknown name lists all.")]
    files: Annotated[
        list[Path], typer.Option(help="File of the benchmark, or a folder with its files; can be repeated.")
    ]
    as_answers: Annotated[
        bool,
        typer.Option(
            "--as-answers",
            help="Read the texts as answers: with the tower for questions, in a checkpoint that has one.",
        ),
    ] = False


@TASKS.register("choice")
class Choice(TaskDefinition[ChoiceOptions]):
    """The task "choice": the right text or image among wrong ones."""

    description = (
        "Accuracy on SugarCrepe, SugarCrepe++, ARO, VALSE, NegBench, Winoground or MMVP-VLM, with the chance level."
    )
    example = (
        "dialog-eval choice --checkpoint draft/model --images coco/val2017 --benchmark sugarcrepe "
        "--files sugar-crepe/data --out results.json"
    )
    options_type = ChoiceOptions
    presentations = (
        Presentation(
            task="choice",
            title="Choice",
            headlines={
                "accuracy": "{protocol}",
                "group score": "{protocol}, groups",
                "pair accuracy": "{protocol}, pairs",
            },
        ),
    )
    in_sweep = True

    def __init__(self, options: ChoiceOptions) -> None:
        super().__init__(options)
        self._benchmark = BENCHMARKS.get(options.benchmark, where="--benchmark")

    def load(self, index: "ImageIndex") -> list[EvaluationTask]:
        """Reads the files of the benchmark."""
        return [load_choice(self._benchmark, self.options.files, index, as_answers=self.options.as_answers)]


@dataclass(frozen=True, kw_only=True)
class ChoiceTask:
    """The items of a benchmark."""

    benchmark: Benchmark
    dataset: str
    items: list[ChoiceItem]
    source_ids: list[tuple[str, ...]]
    """For each item the ids of its images in the index."""
    as_answers: bool = False
    """Whether models read the texts as those that were made of a question."""

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images in the index, each once."""
        return list(dict.fromkeys(image_id for ids in self.source_ids for image_id in ids))

    @property
    def protocol(self) -> str:
        """The name of the benchmark, and how the texts are read."""
        return f"{self.benchmark.title}, read as answers" if self.as_answers else self.benchmark.title

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> tuple[list[Entry], list[Reference]]:
        """Computes each measure over all items, and the headline for each part.

        A benchmark with one image an item is also measured blind: with the mean image in place of every image, which
        shows how many items the texts alone decide.
        """
        import torch
        from torch.nn.functional import normalize

        from dialog_eval.metrics import choice as rules

        if self.as_answers and all(one.clip.for_questions() is one.clip for one in models.alone):
            _log.warning("--as-answers changes nothing: no model here reads answers with a tower of its own")
        names: list[RuleName] = list(self.benchmark.measures.values())
        passed = np.empty((len(models.variants), 2, len(names), len(self.items)), np.bool_)
        best = np.zeros((len(models.variants), len(self.items)), np.int64)
        rows = torch.tensor([images.rows[image_id] for image_id in self.image_ids], device=models.device)
        means = [normalize(vectors[rows].mean(dim=0), dim=0) for vectors in images.vectors]
        advance = counter(on_progress, "items", len(self.items), "items")
        for places in self._bundles():
            texts = {text: None for place in places for text in self.items[place].texts}
            numbers = {text: number for number, text in enumerate(texts)}
            encoded = models.encode_texts(list(texts))
            for variant, of_variant, best_texts in zip(models.variants, passed, best, strict=True):
                vectors = models.text_vectors(variant, encoded, questions=self.as_answers)
                for some in self._of_one_shape(places):
                    own = vectors[torch.tensor([[numbers[text] for text in self.items[i].texts] for i in some])]
                    seen = images.of(variant, [image_id for i in some for image_id in self.source_ids[i]])
                    seen = seen.unflatten(0, (len(some), -1))  # (items, images, D)
                    for way, shown in enumerate((seen, means[variant.image_tower].expand_as(seen))):
                        scores = _scores(shown, own, self.items[some[0]].right)
                        if not way:
                            best_texts[some] = scores.between[:, 0].argmax(dim=-1).cpu().numpy()
                        for number, name in enumerate(names):
                            of_variant[way, number, some] = getattr(rules, name)(scores).cpu().numpy()
            advance(len(places))
        entries: list[Entry] = []
        for place, (variant, (sighted, blind)) in enumerate(zip(models.variants, passed, strict=True)):
            entries.append(self._entry(variant, sighted))
            if variant is models.tuned and self._has_one_image and self._is_choice:
                examples = self._examples(models.alone[0].label, best[[place, 0]], passed[[place, 0], 0, 0])
                entries[-1] = entries[-1].model_copy(update={"examples": examples})
            if self._has_one_image and any(variant is alone for alone in models.alone):
                entries.append(self._entry(variant, blind, ", blind"))
        return entries, self._references()

    def _examples(self, baseline: str, best: npt.NDArray[np.int64], passed: npt.NDArray[np.bool_]) -> Examples:
        """Items on which a model and the baseline differ.

        `best` texts and whether these `passed`: (2 models, items), of the model and of the baseline.
        """

        def build(places: Sequence[int]) -> list[Example]:
            return [
                Example(
                    item=Shown(image_id=self.source_ids[place][0]),
                    right=Shown(text=self.items[place].texts[0]),
                    answer=Shown(text=self.items[place].texts[best[0, place]]),
                    baseline_answer=Shown(text=self.items[place].texts[best[1, place]]),
                )
                for place in places
            ]

        return draw_examples(next(iter(self.benchmark.measures)), baseline, passed[0], passed[1], build)

    def _bundles(self) -> Iterator[list[int]]:
        """The places of items, in bundles with about as many texts as are encoded at a time."""
        bundle: list[int] = []
        texts = 0
        for place, item in enumerate(self.items):
            bundle.append(place)
            texts += len(item.texts)
            if texts >= _TEXTS_PER_BUNDLE:
                yield bundle
                bundle, texts = [], 0
        if bundle:
            yield bundle

    def _of_one_shape(self, places: Sequence[int]) -> list[list[int]]:
        shapes = defaultdict[tuple[int, int, int], list[int]](list)
        for place in places:
            item = self.items[place]
            shapes[len(item.images), len(item.texts), item.right].append(place)
        return list(shapes.values())

    def _entry(self, variant: "Variant", passed: npt.NDArray[np.bool_], suffix: str = "") -> Entry:
        """`passed`: (measures, items)"""
        metrics = [
            Metric.of(name, values, self._groups) for name, values in zip(self.benchmark.measures, passed, strict=True)
        ]
        headline, values = next(iter(self.benchmark.measures)), passed[0]
        if averaged := self._averaged:
            over_parts = values_of_mean_over_parts(values[averaged], [self.items[i].part for i in averaged])
            metrics.insert(1, Metric.of(_OVER_PARTS, over_parts, [self._groups[i] for i in averaged]))
        if self.benchmark.shows_parts and len(self._parts) > 1:
            rest = unused_name("rest", self._parts)
            for part, places in self._parts.items():
                groups = [self._groups[place] for place in places]
                metrics.append(Metric.of(f"{headline}, {part or rest}", values[places], groups))
        entry = variant.entry("choice", self.dataset, self.protocol, metrics, label_suffix=suffix)
        return entry.model_copy(update={"notes": [*entry.notes, *self._notes]})

    @cached_property
    def _has_one_image(self) -> bool:
        return all(len(item.images) == 1 for item in self.items)

    @cached_property
    def _is_choice(self) -> bool:
        """Whether the headline is that the first text has the best score."""
        headline = next(iter(self.benchmark.measures.values()))
        return headline == "choice" and all(item.right == 1 for item in self.items)

    @cached_property
    def _groups(self) -> list[int]:
        """For each item the number of its first image: items of one image are not independent."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(ids[0], len(numbers)) for ids in self.source_ids]

    @cached_property
    def _parts(self) -> dict[str, list[int]]:
        """Part -> places of its items, in order of first appearance."""
        parts = defaultdict[str, list[int]](list)
        for place, item in enumerate(self.items):
            parts[item.part].append(place)
        return dict(parts)

    @cached_property
    def _notes(self) -> list[str]:
        lost = sum(not item.can_be_passed for item in self.items)
        return [f"{count_of(lost, 'item')} of {len(self.items):,} {_IMPOSSIBLE}"] if lost else []

    @cached_property
    def _averaged(self) -> list[int]:
        """The places of the items whose parts "mean over parts" averages."""
        if self.benchmark.averaged is None or len(self._parts) == 1:
            return []
        chosen = self.benchmark.averaged({part: len(places) for part, places in self._parts.items()})
        return [place for place, item in enumerate(self.items) if item.part in chosen]

    def _references(self) -> list[Reference]:
        """The probability of passing each rule with random scores."""
        from dialog_eval.metrics.choice import chance

        references: list[Reference] = []
        for measure, rule in self.benchmark.measures.items():
            value = float(
                np.mean([item.can_be_passed and chance(rule, len(item.texts), item.right) for item in self.items])
            )
            references.append(
                Reference(name="chance", task="choice", dataset=self.dataset, metric=measure, value=value)
            )
        return references


def _scores(images: "Tensor", texts: "Tensor", right: int) -> "Scores":
    """`images`: (items, images, D), `texts`: (items, texts, D)"""
    from dialog_eval.metrics.choice import Scores

    return Scores(between=images @ texts.mT, texts=texts @ texts.mT, right=right)


def load_choice(
    benchmark: Benchmark, files: Sequence[Path], index: "ImageIndex", *, as_answers: bool = False
) -> ChoiceTask:
    """Builds the task of a benchmark's files.

    Raises UsageError for files that are not the benchmark's, and for images that the index lacks or has twice.
    """
    found = files_of(benchmark, files)
    if not found:
        raise UsageError(f"{benchmark.title} is read from files: give --files.{benchmark.hint}")
    try:
        items = benchmark.read(found)
        if not items:
            # ARO's order leaves out captions whose shuffles give the caption again.
            names = ", ".join(map(str, found))
            raise UsageError(f"{names}: no record leaves anything to choose; each needs two different texts.")
    except UsageError as error:
        hint = benchmark.hint or " Is it of another --benchmark?"
        raise UsageError(f"{error}{hint}") from None
    ids = index.by_file_name({part.file_name: part.file_name for item in items for part in item.images})
    return ChoiceTask(
        benchmark=benchmark,
        dataset=f"{found[0].stem if len(found) == 1 else found[0].absolute().parent.name} {digits_of(*found)}",
        items=items,
        as_answers=as_answers,
        source_ids=[
            tuple(
                ids[part.file_name] if part.box is None else index.crop(ids[part.file_name], part.box)
                for part in item.images
            )
            for item in items
        ],
    )
