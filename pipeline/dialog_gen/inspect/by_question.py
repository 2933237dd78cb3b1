"""What is answered to each type of question."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from dialog_gen.inspect.sketches import FrequentItems

_TYPES = 12
_ANSWERS = 8
_ALL = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionType:
    """The pairs whose question begins with the same two words."""

    pairs: int
    marked: int
    """Pairs that a gate marked; 0 if no gate was applied."""
    answers: dict[str, int]
    """The most frequent answers with their counts."""


class AnswersByQuestion:
    """Counts answers by the type of their question, in bounded memory: `FrequentItems` says how exactly."""

    def __init__(self) -> None:
        self._marked, self._answers = FrequentItems(), FrequentItems()

    def add(self, question_type: str, answer: str, marked: bool) -> None:
        """Counts a pair. `question_type` has no line feed."""
        self._answers.add(f"{question_type}\n{answer}")
        if marked:
            self._marked.add(question_type)

    def summary(self, types: Mapping[str, int]) -> dict[str, QuestionType]:
        """The first types of questions in `types`, which maps them to their pairs, with their most frequent answers."""
        pairs, marked = dict(islice(types.items(), _TYPES)), self._marked.top(_ALL)
        answers: dict[str, dict[str, int]] = {name: {} for name in pairs}
        for key, count in self._answers.top(_ALL).items():
            name, answer = key.split("\n", 1)
            if name in answers and len(answers[name]) < _ANSWERS:
                answers[name][answer] = count
        return {
            name: QuestionType(pairs=count, marked=marked.get(name, 0), answers=answers[name])
            for name, count in pairs.items()
        }
