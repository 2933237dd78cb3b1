"""Pairs that are not in the expected language."""

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import pair_text, words


@functools.cache
def classifier() -> Any:
    """py3langid's classifier of all languages that it knows. It is read once a process: that takes most of a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class LanguageSettings(Limits):
    """The expected language, and the length from which pairs are scored."""

    min: Limit = 0.1
    expected: str = "en"
    """ISO 639 code."""
    least_bytes: int = Field(default=20, ge=1)
    """UTF-8 bytes of the letters of question and answer together; shorter pairs get no score."""


@GATES.register("language")
class Language(Gate[LanguageSettings]):
    """Probability that the pair is in the expected language, by py3langid's classifier; in [0, 1].

    The classifier (naive Bayes on byte n-grams; Lui and Baldwin, langid.py, ACL 2012) knows 140 languages; py3langid
    includes it. It is unreliable for very short texts, above all for names, so pairs with fewer than `least_bytes`
    UTF-8 bytes of letters get None.

    "What color is the circle? red" -> 0.92; "Was ist auf dem Bild? Eine Katze." -> 0.00; "yes?" "yes" -> None.
    """

    description = "probability that the pair is in the expected language"
    settings_class = LanguageSettings
    libraries = ("py3langid",)
    order = 80

    def __init__(self, settings: LanguageSettings, dataset_config: Mapping[str, Any]) -> None:
        super().__init__(settings, dataset_config)
        self._identifier = classifier()
        if settings.expected not in self._identifier.labels:
            hint = did_you_mean(settings.expected, self._identifier.labels)
            raise UsageError(
                f"language: expected = {settings.expected!r} is not a language that can be detected: {hint}."
            )

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return [self._score(pair_text(pair)) for pair in row["texts"]]

    def _score(self, text: str) -> float | None:
        letters = sum(len(word.encode()) for word in words(text) if not word.isdecimal())
        if letters < self.settings.least_bytes:
            return None
        language, probability = self._identifier.classify(text)
        if language == self.settings.expected:
            return probability
        # `rank` computes the probabilities of all languages; `classify` is faster and enough for most pairs.
        return dict(self._identifier.rank(text))[self.settings.expected]
