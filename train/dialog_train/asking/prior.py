"""How likely each answer is, given only the beginning of the question: counted over the dialogues of a dataset.

    P(answer | type) = (n(type, answer) + 0.01) / (n(type) + 0.01 * (A + 1))

The type of a question is its first two words, in lower case; A is the number of distinct answers, and one more stands
for all others. Only pairs that no quality gate marks are counted. What people answered in a benchmark is never used.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import read_regular, write_file
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.plain_problems import first_problem
from dialog_gen.core.sealed_json import sealed, unsealed
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.record import kept_pairs
from dialog_train.asking.questions import answer_key, tidy

ADDED = 0.01
"""Is added to each count, so that an answer that was never seen is unlikely, not impossible."""

MOST_PAIRS = 5_000_000
"""Counting more would take hours for 100 M images, and hardly change a frequency."""

_FORMAT = "dialog-gen answer prior 1"
# Types and answers in memory. Beyond it the rarest are forgotten: free answers of 100 M images would take tens of GB.
_MOST_COUNTS = 1 << 20


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: str
    counts: dict[str, dict[str, int]]
    totals: dict[str, int]


class AnswerPrior:
    """Counts of answers by the type of their question."""

    def __init__(self, counts: dict[str, Counter[str]], totals: dict[str, int] | None = None) -> None:
        """`counts`: type -> answer (as `answer_key` makes it) -> how often. `totals`: type -> number of pairs, if rare
        answers are left out of `counts`.
        """
        self._counts = counts
        self._totals = totals or {kind: answers.total() for kind, answers in counts.items()}
        self._distinct = len({answer for answers in counts.values() for answer in answers})

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[str, str]]) -> "AnswerPrior":
        """Counts pairs of a question and its answer."""
        counts, totals, size = defaultdict[str, Counter[str]](Counter), Counter[str](), 0
        for question, answer in pairs:
            kind, key = question_type(question), answer_key(answer)
            if not kind or not key:
                continue
            size += key not in counts[kind]
            counts[kind][key] += 1
            totals[kind] += 1
            size = forget_rarest(counts, size)
        return cls(dict(counts), dict(totals))

    @classmethod
    def of_dataset(
        cls,
        dataset: str | Path | DatasetFolder,
        *,
        uses: Callable[[str], bool] = lambda image_sha256: True,
        most_pairs: int = MOST_PAIRS,
    ) -> "AnswerPrior":
        """Counts the kept pairs of a dialogues dataset, the first `most_pairs` of them.

        `uses` gets the SHA-256 of an image and says whether its dialogue is counted.

        Raises UsageError for a folder that is no dataset, for a damaged one, and if no pair is left to count.
        """
        folder = open_dataset(dataset)
        columns = ["image_sha256", "texts", "gates"]
        rows = folder.rows(columns)
        pairs = ((p["user"], p["assistant"]) for row in rows if uses(row["image_sha256"]) for p in kept_pairs(row))
        prior = cls.of_pairs(islice(pairs, most_pairs))
        if not prior.pairs:
            some_kept = any(kept_pairs(row) for row in folder.rows(columns))
            why = "all images with kept pairs are held out" if some_kept else "no pair is kept by the gates"
            raise UsageError(f"{folder.location} has no question and answer to count: {why}.")
        return prior

    def log_probabilities(self, question: str, answers: Sequence[str]) -> npt.NDArray[np.float64]:
        """Log P(answer | type of the question) for each answer, (answers,).

        All answers are equally likely for a type of question that was never counted.
        """
        kind = question_type(question)
        counts = self._counts.get(kind, Counter[str]())
        whole = math.log(self._totals.get(kind, 0) + ADDED * (self._distinct + 1))
        seen = np.array([counts.get(answer_key(answer), 0) for answer in answers], np.float64)
        return np.log(seen + ADDED) - whole

    def answers(self, question: str) -> Counter[str]:
        """The answers counted for the type of a question; empty for a type that was never counted."""
        return Counter(self._counts.get(question_type(question), {}))

    def all_answers(self) -> Counter[str]:
        """The answers counted for all types."""
        counts = Counter[str]()
        for answers in self._counts.values():
            counts.update(answers)
        return counts

    def share(self, question: str) -> float:
        """The share (0 to 1) of a question's type among all pairs that were counted."""
        return self._totals.get(question_type(question), 0) / max(self.pairs, 1)

    def best(self, question: str) -> str | None:
        """The most frequent answer for the type of a question; None for a type that was never counted."""
        most = self.answers(question).most_common(1)
        return most[0][0] if most else None

    @cached_property
    def pairs(self) -> int:
        """The number of pairs that were counted."""
        return sum(self._totals.values())

    @property
    def sha256(self) -> str:
        """Identifies the counts."""
        return sha256_json(self._content())

    def save(self, path: Path) -> None:
        """Writes the counts as JSON. Raises DialogGenError if the disk refuses the write."""
        write_file(path, f"{json.dumps(sealed(self._content()), ensure_ascii=False)}\n".encode())

    @classmethod
    def load(cls, path: Path) -> "AnswerPrior":
        """Reads what `save` wrote. Raises UsageError for a file that cannot be read or holds something else."""
        try:
            found = _File.model_validate(unsealed(read_regular(path)))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
        except ValueError as error:
            raise UsageError(f"{path} is no answer prior: {first_problem(error)}.") from None
        if found.format != _FORMAT:
            raise UsageError(f"{path} is of the format {found.format!r}, expected {_FORMAT!r}: make it anew.")
        return cls({kind: Counter(answers) for kind, answers in found.counts.items()}, found.totals)

    def _content(self) -> dict[str, object]:
        return {
            "format": _FORMAT,
            "counts": {kind: dict(sorted(self._counts[kind].items())) for kind in sorted(self._counts)},
            "totals": dict(sorted(self._totals.items())),
        }


def question_type(question: str) -> str:
    """The type of a question: its first two words, in lower case."""
    return " ".join(tidy(question).lower().split()[:2])


def forget_rarest(counts: dict[str, Counter[str]], size: int) -> int:
    """Forgets the rarest of `size` counted texts if they are too many to be kept; returns how many are left."""
    if size <= _MOST_COUNTS:
        return size
    least = 0
    while (size := sum(map(len, counts.values()))) > _MOST_COUNTS // 2:
        least = max(2 * least, 1)
        for kind, answers in counts.items():
            counts[kind] = Counter({answer: count for answer, count in answers.items() if count > least})
    return size
