"""Answers that say nothing, or only what the question said."""

from difflib import SequenceMatcher

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import words


class EmptySettings(Limits):
    """An answer may share four fifths of its words with the question, in one run."""

    max: Limit = 0.8


@GATES.register("empty")
class Empty(Gate[EmptySettings]):
    """Words of the longest run that question and answer share, over the words of the longer of the two; in [0, 1].

    1 where the answer repeats the question, and where it holds no word.
    "What color is it?" "what color is it" -> 4/4; "What color is it?" "It is red." -> 1/4 ("is", or "it").
    """

    description = "how much of question and answer is one and the same; 1 if the answer says nothing"
    settings_class = EmptySettings
    order = 10

    def score_row(self, row: Row) -> Scores:
        """One score a pair."""
        return [_echo(words(pair["user"]), words(pair["assistant"])) for pair in row["texts"]]


def _echo(question: list[str], answer: list[str]) -> float:
    if not answer:
        return 1.0
    shared = SequenceMatcher(None, question, answer, autojunk=False).find_longest_match()
    return shared.size / max(len(question), len(answer))
