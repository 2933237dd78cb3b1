"""Questions that give their answer away."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import FUNCTION_WORDS, words


class LeakSettings(Limits):
    """By default, a question may contain 90 % of the answer's content words."""

    max: Limit = 0.9


@GATES.register("leak")
class Leak(Gate[LeakSettings]):
    """Fraction of the answer's content words that occur in the question; in [0, 1].

    Content words are all but English function words. "What color is the red car?" "Red." -> 1/1; "What is the man
    holding?" "The man is holding a phone." -> 2/3 (man, holding; not phone). None for an answer without content words,
    and for questions with "or", which are meant to name their answer.
    """

    description = "fraction of the answer's content words that the question gives away"
    settings_class = LeakSettings
    order = 40

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return [_leak(words(pair["user"]), words(pair["assistant"])) for pair in row["texts"]]


def _leak(question: list[str], answer: list[str]) -> float | None:
    content = set(answer) - FUNCTION_WORDS
    return len(content & set(question)) / len(content) if content and "or" not in question else None
