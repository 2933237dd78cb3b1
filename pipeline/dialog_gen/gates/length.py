"""Answers without a word, and rambling ones."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import words


class LengthSettings(Limits):
    """In words."""

    min: Limit = 1.0
    max: Limit = 60.0


@GATES.register("length")
class Length(Gate[LengthSettings]):
    """Words of the answer. "It's 3.5 m, yes!" -> 4."""

    description = "words of the answer"
    settings_class = LengthSettings
    order = 90

    def score_row(self, row: Row) -> Scores:
        """One score a pair."""
        return [float(len(words(pair["assistant"]))) for pair in row["texts"]]
