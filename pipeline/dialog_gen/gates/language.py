"""Which language a pair is in."""

from collections.abc import Sequence

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.gates.scorer import Row, Scores
from dialog_gen.gates.settings import LanguageSettings
from dialog_gen.gates.words import pair_text, words


class Language:
    """Probability that the pair is in the expected language, by py3langid's classifier; in [0, 1].

    The classifier (naive Bayes on byte n-grams; Lui and Baldwin, langid.py, ACL 2012) tells 140 languages apart and
    comes in the package. A few words are too little for it, names above all: pairs with less than `least_bytes` UTF-8
    bytes of letters get None. "What color is the circle? red" -> 0.92; "Was ist auf dem Bild? Eine Katze." -> 0.00;
    "yes?" "yes" -> None.
    """

    columns = ("texts",)

    def __init__(self, settings: LanguageSettings) -> None:
        self._expected, self._least_bytes = settings.expected, settings.least_bytes
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        if self._expected not in self._identifier.labels:
            hint = did_you_mean(self._expected, self._identifier.labels)
            raise UsageError(f"language: expected = {self._expected!r} is no language that can be told: {hint}.")

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """See `Scorer`."""
        return [[self._score(pair_text(pair)) for pair in row["texts"]] for row in rows]

    def close(self) -> None:
        """See `Scorer`."""

    def _score(self, text: str) -> float | None:
        letters = sum(len(word.encode()) for word in words(text) if not word.isdecimal())
        if letters < self._least_bytes:
            return None
        language, probability = self._identifier.classify(text)
        # Faster than the probabilities of all languages, and enough for most pairs.
        return probability if language == self._expected else dict(self._identifier.rank(text))[self._expected]
