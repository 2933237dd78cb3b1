"""Statistics of a dataset, computed in one pass over its texts. Memory use does not grow with the dataset."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.record import STATEMENTS, marking_gates, stored_images
from dialog_gen.dataset.verify import Verdict
from dialog_gen.gates.words import words
from dialog_gen.inspect.by_question import AnswersByQuestion, QuestionType
from dialog_gen.inspect.distributions import Distribution, Spread
from dialog_gen.inspect.sampling import sample_rows
from dialog_gen.inspect.sketches import DistinctItems, FrequentItems
from dialog_gen.sources.images import FORMATS

TOP = 20
"""Number of the most frequent question types and answers that are listed."""

_SIZED_IMAGES = 1000
_KEY_CHARS = 1000
"""Of texts that are counted, so that memory is bounded: longer texts with the same beginning count as one."""
_NUMBERS = frozenset(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
)
_COLUMNS = (
    "image_sha256",
    "caption",
    "texts",
    "gates",
    STATEMENTS,
    "model",
    "protocol",
    "engine",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterances:
    """Statistics of all questions, or of all answers. Texts are compared without case and final punctuation."""

    distinct: int
    distinct_is_exact: bool
    """False if `distinct` is an estimate, with a standard error of 0.6 %."""
    words: Spread
    top: dict[str, int]
    """The most frequent question types (the first two words), or whole answers, with their counts."""
    top_undercount: int
    """Counts of `top` may be too low by at most this number; 0 if they are exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStats:
    """Statistics of a quality gate. Counts are of pairs."""

    scored: int
    marked: int
    scores: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSizes:
    """Statistics of a uniform sample of images, read from their headers.

    `width` and `height` are medians in pixels; `smallest` and `largest` are (width, height) by area; `bytes` is the
    median file size.
    """

    sampled: int
    readable: int
    width: float
    height: float
    smallest: tuple[int, int]
    largest: tuple[int, int]
    bytes: float
    formats: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Statistics of a dataset. The fields are the keys that `dialog-gen stats --json` prints."""

    shards: int
    images: int
    """The sum of accepted, rejected and unreadable images."""
    accepted: int
    rejected: int
    unreadable: int
    reasons: dict[str, dict[str, int]]
    bytes: int
    """Size of all Parquet files."""
    repeated_images: int
    """Accepted images whose bytes are equal to those of an earlier one."""
    repeated_images_is_exact: bool
    pairs: int
    statements: int | None
    """Pairs with a statement; None if the dataset has no column of statements."""
    pairs_per_image: dict[int, int]
    """Number of pairs -> number of images with this number of pairs."""
    pairs_gated: int
    pairs_kept: int
    """Pairs with gate scores that no gate marked."""
    images_without_kept_pair: int
    questions: Utterances
    answers: Utterances
    answer_types: dict[str, int]
    """"yes/no", "number" or "other" -> number of pairs."""
    by_question: dict[str, QuestionType]
    """The most frequent types of questions (the first two words) with what is answered to them."""
    captions: Spread
    """Words per caption, over the images that have one."""
    gates: dict[str, GateStats]
    """Statistics of the gates that scored or marked at least one pair."""
    image_sizes: ImageSizes | None
    """None if the dataset contains no images."""
    models: dict[str, int]
    protocols: dict[str, int]
    fallbacks: dict[str, int]
    """Those of the protocols that were fallbacks: they made these dialogues after another one had failed."""
    engines: dict[str, int]


def stats(dataset: str | Path | DatasetFolder, *, on_progress: OnProgress = ignore_progress) -> Stats:
    """Computes statistics of a dataset from all its texts and the headers of 1,000 images.

    Raises DamagedDatasetError for a missing or damaged file, because statistics of a part would be misleading.
    """
    folder = open_dataset(dataset)
    sizes = _image_sizes(folder)
    counted, counts, file_bytes = Verdict(), _RowCounts(), 0
    total = len(folder.shards())
    # One pass: a run may add shards meanwhile.
    for manifest in folder.manifests():
        counted.count(manifest)
        file_bytes += sum(entry.bytes for entry in manifest.files)
        for table in folder.row_groups(manifest.data, _COLUMNS) if manifest.data else ():
            for row in table.to_pylist():
                counts.add(row)
        on_progress("reading shards", counted.shards, max(total, counted.shards))
    questions = counts.questions.summary()
    return Stats(
        shards=counted.shards,
        images=counted.images,
        accepted=counted.accepted,
        rejected=counted.rejected,
        unreadable=counted.unreadable,
        reasons=counted.reasons,
        bytes=file_bytes,
        repeated_images=counts.images.repeated,
        repeated_images_is_exact=counts.images.exact,
        pairs=counts.answer_types.total(),
        statements=counts.statements if folder.config().get(STATEMENTS) else None,
        pairs_per_image=dict(sorted(counts.pairs_per_image.items())),
        pairs_gated=counts.pairs_gated,
        pairs_kept=counts.pairs_kept,
        images_without_kept_pair=counts.images_without_kept_pair,
        questions=questions,
        answers=counts.answers.summary(),
        answer_types={kind: counts.answer_types[kind] for kind in ("yes/no", "number", "other")},
        by_question=counts.by_question.summary(questions.top),
        captions=Spread.of(counts.captions),
        gates={
            name: GateStats(scored=len(scores), marked=counts.marked[name], scores=Spread.of(scores))
            for name, scores in counts.scores.items()
            if len(scores) or counts.marked[name]
        },
        image_sizes=sizes,
        models=counts.models.top(TOP),
        protocols=counts.protocols.top(TOP),
        fallbacks=counted.fallbacks,
        engines=counts.engines.top(TOP),
    )


def question_type(question: str) -> str:
    """The first two words, such as "what color", "how many", "is there" (cf. VQA, arXiv 1505.00468)."""
    return " ".join(words(question)[:2])


def answer_type(question: str, answer: str) -> str:
    """The type of an answer: "yes/no" (by the first word), "number" (a number, or an answer to "how many"), "other"."""
    found = words(answer)
    if found[:1] in (["yes"], ["no"]):
        return "yes/no"
    is_number = len(found) == 1 and (found[0] in _NUMBERS or found[0].replace(",", "").isdecimal())
    return "number" if is_number or question_type(question) == "how many" else "other"


def plain(text: str) -> str:
    """A text without case and final punctuation: texts that are equal then count as the same."""
    return text.casefold().strip().rstrip(".!?").rstrip()


class _UtteranceCounts:
    def __init__(self) -> None:
        self._distinct, self._words, self._top = DistinctItems(), Distribution(), FrequentItems()

    def add(self, text: str, kind: str) -> None:
        self._distinct.add(plain(text))
        self._words.add(len(words(text)))
        self._top.add(kind)

    def summary(self) -> Utterances:
        return Utterances(
            distinct=self._distinct.distinct,
            distinct_is_exact=self._distinct.exact,
            words=Spread.of(self._words),
            top=self._top.top(TOP),
            top_undercount=self._top.undercount,
        )


@dataclass(slots=True)
class _RowCounts:
    """The counters of the pass over the rows."""

    images: DistinctItems = field(default_factory=DistinctItems)
    questions: _UtteranceCounts = field(default_factory=_UtteranceCounts)
    answers: _UtteranceCounts = field(default_factory=_UtteranceCounts)
    captions: Distribution = field(default_factory=Distribution)
    pairs_per_image: Counter[int] = field(default_factory=Counter[int])
    answer_types: Counter[str] = field(default_factory=Counter[str])
    marked: Counter[str] = field(default_factory=Counter[str])
    scores: defaultdict[str, Distribution] = field(default_factory=lambda: defaultdict(Distribution))
    by_question: AnswersByQuestion = field(default_factory=AnswersByQuestion)
    pairs_gated: int = 0
    pairs_kept: int = 0
    images_without_kept_pair: int = 0
    statements: int = 0
    models: FrequentItems = field(default_factory=FrequentItems)
    protocols: FrequentItems = field(default_factory=FrequentItems)
    engines: FrequentItems = field(default_factory=FrequentItems)

    def add(self, row: dict[str, Any]) -> None:
        self.images.add(row["image_sha256"])
        self.models.add(row["model"])
        self.protocols.add(row["protocol"])
        self.engines.add(row["engine"])
        if row["caption"]:
            self.captions.add(len(words(row["caption"])))
        self.pairs_per_image[len(row["texts"])] += 1
        self.statements += sum(statement is not None for statement in row.get(STATEMENTS) or ())
        gates = row["gates"]
        marks = [marking_gates(scores) for scores in gates or ()]
        for place, pair in enumerate(row["texts"]):
            question, answer = pair["user"], plain(pair["assistant"])[:_KEY_CHARS]
            kind = question_type(question)[:_KEY_CHARS]
            self.questions.add(question, kind)
            self.answers.add(pair["assistant"], answer)
            self.answer_types[answer_type(question, pair["assistant"])] += 1
            self.by_question.add(kind, answer, bool(marks and marks[place]))
        if gates is not None:
            for score in chain.from_iterable(gates):
                scores, value = self.scores[score["gate"]], score["score"]
                if value is not None and isfinite(value):
                    scores.add(value)
            kept = sum(not marking for marking in marks)
            self.pairs_gated += len(marks)
            self.pairs_kept += kept
            self.images_without_kept_pair += not kept
            self.marked.update(chain.from_iterable(marks))


def _image_sizes(folder: DatasetFolder) -> ImageSizes | None:
    shapes: list[tuple[int, int]] = []
    lengths: list[int] = []
    formats = Counter[str]()
    for row in sample_rows(folder, ["images"], _SIZED_IMAGES):
        for data in stored_images(row):
            lengths.append(len(data))
            try:
                with Image.open(BytesIO(data), formats=FORMATS) as image:
                    shapes.append(image.size)
                    formats[str(image.format)] += 1
            except Exception:  # noqa: BLE001 - Pillow raises anything on bytes that are no image
                formats["not an image"] += 1
    if not lengths:
        return None
    return ImageSizes(
        sampled=len(lengths),
        readable=len(shapes),
        width=median(width for width, _ in shapes) if shapes else 0,
        height=median(height for _, height in shapes) if shapes else 0,
        smallest=min(shapes, key=lambda size: (size[0] * size[1], size), default=(0, 0)),
        largest=max(shapes, key=lambda size: (size[0] * size[1], size), default=(0, 0)),
        bytes=median(lengths),
        formats=dict(formats.most_common()),
    )
