"""Answers that say nothing, or only what the question said."""

from difflib import SequenceMatcher

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import words


class EmptySettings(Limits):
    """By default, a run of up to 80 % of the words may be common to question and answer."""

    max: Limit = 0.8


@GATES.register("empty")
class Empty(Gate[EmptySettings]):
    """Length of the longest run of words common to question and answer, divided by the longer one's length; in [0, 1].

    Lengths are in words. 1 if the answer repeats the question, and if it contains no word.
    "What color is it?" "what color is it" -> 4/4; "What color is it?" "It is red." -> 1/4 ("is", or "it").
    """

    description = "share of question and answer that is one common run of words; 1 if the answer has no words"
    settings_class = EmptySettings
    order = 10

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return [_echo(words(pair["user"]), words(pair["assistant"])) for pair in row["texts"]]


def _echo(question: list[str], answer: list[str]) -> float:
    if not answer:
        return 1.0
    shared = SequenceMatcher(None, question, answer, autojunk=False).find_longest_match()
    return shared.size / max(len(question), len(answer))
