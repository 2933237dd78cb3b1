"""Answers in which the model repeats itself."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import words

_LONGEST_PERIOD = 32


class RepetitionSettings(Limits):
    """By default, half of an answer may be repetition."""

    max: Limit = 0.5


@GATES.register("repetition")
class Repetition(Gate[RepetitionSettings]):
    """Fraction of the answer's words that repeat the words right before them; in [0, 1).

    A word counts if, for some period p up to 32, it is part of a run of at least p words, each of which equals the word
    p places before it. "a red, a red, a red star": p = 2, "a red a red" is repetition -> 4/7. "very very good" -> 1/3.
    "a red and a blue star" -> 0: only "a" occurs again. None for an answer without words.
    """

    description = "fraction of the answer's words that repeat the words right before them"
    settings_class = RepetitionSettings
    order = 20

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return [_repetition(words(pair["assistant"])) for pair in row["texts"]]


def _repetition(answer: list[str]) -> float | None:
    if not answer:
        return None
    repeated = set[int]()
    for period in range(1, min(len(answer) // 2, _LONGEST_PERIOD) + 1):
        run = 0
        for i in range(period, len(answer)):
            run = run + 1 if answer[i] == answer[i - period] else 0
            if run == period:
                repeated.update(range(i - period + 1, i + 1))
            elif run > period:
                repeated.add(i)
    return len(repeated) / len(answer)
