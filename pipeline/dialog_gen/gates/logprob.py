"""Answers that the model itself found unlikely."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores


class LogprobSettings(Limits):
    """The limits, as natural logarithms per token."""

    min: Limit = -2.0


@GATES.register("logprob")
class Logprob(Gate[LogprobSettings]):
    """Mean log-probability of the answer's tokens, recorded during generation; None if it was not recorded."""

    description = "mean log-probability of the answer's tokens when they were sampled"
    settings_class = LogprobSettings
    unscored = "log-probabilities are recorded only in a run with --gates logprob"
    columns = ("texts", "answer_logprobs")
    order = 110

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return list(row["answer_logprobs"] or [None] * len(row["texts"]))
