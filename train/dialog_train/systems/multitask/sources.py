"""Sources of text pairs and triplets: the dialogues of a dataset, or Parquet files."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import hash_64, sha256_json
from dialog_gen.core.parquet import open_parquet
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.gates.words import words
from dialog_gen.inspect.statistics import question_type
from dialog_train.data.derived import Source, identity_of_dataset, read_rows, sources_of
from dialog_train.data.training_set import DIALOGUE_FORMATS
from dialog_train.systems.multitask.pairs import PairPart, TextPair

_ROWS_PER_BATCH = 1024
_ANSWERS_PER_TYPE = 1024


@dataclass(frozen=True, slots=True)
class DialogueRows:
    """The rows of a dialogues dataset; `kept_only` leaves out pairs that a quality gate marked."""

    dataset: DatasetFolder
    kept_only: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """Identifies the rows, as JSON values."""
        return {**identity_of_dataset(self.dataset), "kept_only": self.kept_only}

    def sources(self) -> list[Source]:
        """The shards that contain dialogues."""
        return list(sources_of(self.dataset))

    def read(self, source: Source) -> Iterator[list[dict[str, Any]]]:
        """Yields lists of rows with the columns image_id, caption and texts.

        Raises UsageError for a shard without the columns or, with `kept_only`, without gates.
        """
        columns = ["image_id", "caption", "texts"]
        return read_rows(self.dataset, source, columns, kept_only=self.kept_only, batch_size=_ROWS_PER_BATCH)


@dataclass(frozen=True)
class DialoguePairs:
    """Pairs (caption, all question-answer pairs of its image joined) and (question, answer)."""

    rows: DialogueRows
    negatives: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """Implements `PairSource`."""
        return {"source": "dialogues", **self.rows.config}

    def parts(self) -> Iterator[PairPart]:
        """Implements `PairSource`."""
        for source in self.rows.sources():
            yield PairPart(source.shard, source.sha256, partial(self._read, source))

    def _read(self, source: Source) -> Iterator[list[TextPair]]:
        text = DIALOGUE_FORMATS["question_answer"]
        for rows in self.rows.read(source):
            pairs: list[TextPair] = []
            for row in rows:
                if row["texts"] and (row["caption"] or "").strip():
                    pairs.append(TextPair(row["caption"], " ".join(text.format_map(pair) for pair in row["texts"])))
                pairs += [TextPair(pair["user"], pair["assistant"]) for pair in row["texts"]]
            yield pairs


@dataclass(frozen=True)
class DialogueTriplets:
    """Triplets (question, right answer, wrong answers).

    The wrong answers are right answers to other questions of the same type. They are determined by `seed`, the image's
    id and the position of the pair in its dialogue.
    """

    rows: DialogueRows
    negatives: int
    seed: int

    @property
    def config(self) -> dict[str, Any]:
        """Implements `PairSource`."""
        return {"source": "dialogues", **self.rows.config, "seed": self.seed}

    def parts(self) -> Iterator[PairPart]:
        """Implements `PairSource`."""
        sources = self.rows.sources()
        # The fingerprint covers all shards because a wrong answer may come from any of them.
        everything = sha256_json({source.shard: source.sha256 for source in sources})
        for source in sources:
            yield PairPart(source.shard, everything, partial(self._read, source))

    @cached_property
    def _answers(self) -> "AnswerPool":
        pool = AnswerPool()
        for source in self.rows.sources():
            for rows in self.rows.read(source):
                for row in rows:
                    for pair in row["texts"]:
                        pool.add(pair["user"], pair["assistant"])
        return pool

    def _read(self, source: Source) -> Iterator[list[TextPair]]:
        for rows in self.rows.read(source):
            yield [
                self._triplet(pair, random.Random(f"negatives/{self.seed}/{row['image_id']}/{number}"))
                for row in rows
                for number, pair in enumerate(row["texts"])
            ]

    def _triplet(self, pair: dict[str, str], rng: random.Random) -> TextPair:
        question, answer = pair["user"], pair["assistant"]
        wrong, substitutes = self._answers.draw(question, answer, self.negatives, rng)
        if len(wrong) < self.negatives:
            raise UsageError(
                f"{self.rows.dataset.location} has {len(wrong)} wrong answers to {question!r}, triplets need "
                f"{self.negatives}: lower texts.negatives, or take more dialogues."
            )
        return TextPair(question, answer, tuple(wrong), substitutes)


class AnswerPool:
    """Distinct answers by question type.

    For each type and for all types together it keeps the `limit` answers with the smallest hashes.
    """

    def __init__(self, limit: int = _ANSWERS_PER_TYPE) -> None:
        self._of_type: dict[str, _Sample] = defaultdict(lambda: _Sample(limit))
        self._of_any = _Sample(limit)

    def add(self, question: str, answer: str) -> None:
        """Adds the right answer to a question; an answer without a word is ignored."""
        if plain := plain_answer(answer):
            self._of_type[question_type(question)].add(plain, answer)
            self._of_any.add(plain, answer)

    def draw(self, question: str, answer: str, count: int, rng: random.Random) -> tuple[list[str], int]:
        """Draws up to `count` distinct wrong answers, and counts how many are of other question types.

        Answers to questions of the same type come first; others are added only if there are too few. No answer equals
        `answer`.
        """
        taken = {plain_answer(answer)}
        own = self._of_type[question_type(question)].draw(count, taken, rng)
        others = self._of_any.draw(count - len(own), taken, rng)
        return own + others, len(others)


class _Sample:
    """Keeps the `limit` texts whose keys have the smallest hashes: a sample that does not depend on the order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._texts: dict[str, str] = {}
        self._heap: list[tuple[int, str]] = []

    def add(self, plain: str, text: str) -> None:
        if plain in self._texts:
            return
        self._texts[plain] = text
        heappush(self._heap, (-hash_64(plain), plain))
        if len(self._heap) > self._limit:
            del self._texts[heappop(self._heap)[1]]

    def draw(self, count: int, taken: set[str], rng: random.Random) -> list[str]:
        """Up to `count` texts whose keys are not in `taken`; adds their keys to it."""
        if not count:
            return []
        # Some of the drawn texts may be taken already, so draw that many more.
        drawn = rng.sample(list(self._texts), min(len(self._texts), count + len(taken)))
        chosen = [plain for plain in drawn if plain not in taken][:count]
        taken.update(chosen)
        return [self._texts[plain] for plain in chosen]


def plain_answer(text: str) -> str:
    """The words of an answer without case and punctuation; answers that agree in it count as equal."""
    return " ".join(words(text))


@dataclass(frozen=True)
class ParquetPairs:
    """A local Parquet file, or all in a folder, with columns query, positive and, for triplets, negatives.

    `negatives` contains lists of texts; only the first `negatives` texts of a row are used.
    """

    path: Path
    negatives: int = 0

    @property
    def config(self) -> dict[str, Any]:
        """Implements `PairSource`."""
        return {"source": "parquet"}

    def parts(self) -> Iterator[PairPart]:
        """Implements `PairSource`."""
        files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not files or not all(file.is_file() for file in files):
            raise UsageError(
                f"{self.path} is no Parquet file and no folder with some: give text pairs, or leave it out."
            )
        for number, file in enumerate(files):
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            yield PairPart(f"{number:05}", digest, partial(self._read, file))

    def _read(self, file: Path) -> Iterator[list[TextPair]]:
        columns = ["query", "positive", *(["negatives"] if self.negatives else [])]
        try:
            with open_parquet(file) as parquet:
                if missing := [name for name in columns if name not in parquet.schema_arrow.names]:
                    raise UsageError(
                        f"{file} has no column {', '.join(missing)}: text pairs need {', '.join(columns)}."
                    )
                first = 0
                for batch in parquet.iter_batches(_ROWS_PER_BATCH, columns=columns):
                    yield [self._pair(file, first + i, row) for i, row in enumerate(batch.to_pylist())]
                    first += len(batch)
        except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
            raise UsageError(f"{file} cannot be read ({error}).") from error

    def _pair(self, file: Path, number: int, row: dict[str, Any]) -> TextPair:
        negatives: Sequence[Any] = (row.get("negatives") or [])[: self.negatives]
        texts = [row["query"], row["positive"], *negatives]
        wrong = next((text for text in texts if not isinstance(text, str) or not text.strip()), None)
        if wrong is not None or len(texts) < 2 + self.negatives or None in texts:
            raise UsageError(
                f"{file}, row {number}: query, positive and {self.negatives} negatives must be texts, got {row!r:.200}."
            )
        return TextPair(texts[0], texts[1], tuple(texts[2:]))
