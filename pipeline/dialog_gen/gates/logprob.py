"""Answers that the model itself found unlikely."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores


class LogprobSettings(Limits):
    """Natural logarithm, a token."""

    min: Limit = -2.0


@GATES.register("logprob")
class Logprob(Gate[LogprobSettings]):
    """Mean log-probability of the answer's tokens, as recorded; None where it was not."""

    description = "mean log-probability of the answer's tokens when they were sampled"
    settings_class = LogprobSettings
    columns = ("texts", "answer_logprobs")
    order = 110

    def score_row(self, row: Row) -> Scores:
        """One score a pair."""
        return list(row["answer_logprobs"] or [None] * len(row["texts"]))
