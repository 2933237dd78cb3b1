"""Answers that were cut off."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores


class TruncationSettings(Limits):
    """By default, every answer that was cut off is marked."""

    max: Limit = 0.5


@GATES.register("truncation")
class Truncation(Gate[TruncationSettings]):
    """1 if generation of the answer stopped at the token limit, else 0.

    If one output lists several pairs, parsing has dropped the pair that was cut off, so the others are complete: 0.
    If a row has several turns, at least one of which lists several pairs, finish reasons cannot be assigned to pairs:
    None if any turn was cut off.
    """

    description = "1 if the answer was cut off at the token limit"
    settings_class = TruncationSettings
    columns = ("texts", "finish_reasons")
    order = 30

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        pairs, reasons = len(row["texts"]), row["finish_reasons"]
        if len(reasons) == pairs:
            return [float(reason == "length") for reason in reasons]
        known = len(reasons) == 1 or "length" not in reasons
        return [0.0 if known else None] * pairs
