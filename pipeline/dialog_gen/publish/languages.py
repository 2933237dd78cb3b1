"""The languages of a sample of texts, for the header of a dataset card."""

from collections import Counter
from collections.abc import Iterable

from dialog_gen.gates.language import classifier
from dialog_gen.gates.words import words

_LEAST_BYTES = 20
"""UTF-8 bytes of the letters of a text; shorter ones are not told apart reliably."""
_LEAST_PROBABILITY = 0.9
_LEAST_SHARE = 0.05


def languages_of(texts: Iterable[str]) -> list[str]:
    """ISO 639-1 codes of the languages that at least 5 % of the texts are in, the most frequent first.

    The classifier is that of the gate `language`. Texts that are too short, or unclear, do not count.
    """
    found = Counter[str]()
    for text in texts:
        if sum(len(word.encode()) for word in words(text) if not word.isdecimal()) >= _LEAST_BYTES:
            language, probability = classifier().classify(text)
            found[language] += probability >= _LEAST_PROBABILITY
    return [language for language, count in found.most_common() if count and count >= _LEAST_SHARE * found.total()]
