"""Answers without words, and answers that are too long."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import words


class LengthSettings(Limits):
    """The limits, in words."""

    min: Limit = 1.0
    max: Limit = 60.0


@GATES.register("length")
class Length(Gate[LengthSettings]):
    """Number of words in the answer. "It's 3.5 m, yes!" -> 4."""

    description = "number of words in the answer"
    settings_class = LengthSettings
    order = 90

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return [float(len(words(pair["assistant"]))) for pair in row["texts"]]
