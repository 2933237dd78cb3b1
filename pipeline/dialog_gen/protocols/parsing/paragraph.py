"""Reads a paragraph that asks and answers in turn: "What is it? A dog. Where is it? On a sofa."."""
# ruff: noqa: RUF001 - full-width punctuation and apostrophes

import re

from dialog_gen.protocols.parsing.languages import Language, words
from dialog_gen.protocols.parsing.marks import QUESTION_MARKS, Mark

_SENTENCE_END = re.compile(r"(?<=[.!?؟।…])[\"'”’»)]{0,3}\s|(?<=[。！？])\s?")
_CJK = "\u1100"
_LONGEST_ANSWER = 300
"""Characters; a longer text between two questions is a story or a description."""
_WORDS = re.compile(r"[^\s.,;:!?¿¡؟]+")


def paragraph(text: str) -> list[Mark]:
    """The segments of such a text; none if it is anything else, such as a story in which people ask."""
    start = _first_sentence_that_asks(text)
    segments: list[Mark] = []
    at = start
    for end in [m.end() for m in _SENTENCE_END.finditer(text, start)] + [len(text)]:
        sentence = text[at:end].strip()
        if not sentence:
            continue
        if sentence.endswith(QUESTION_MARKS):
            if (segments and segments[-1].kind == "Q") or not _asks(sentence):
                return []
            segments.append(Mark("Q", at, at, True, ""))
        elif not segments:
            return []
        elif segments[-1].kind == "Q":
            segments.append(Mark("A", at, at, True, ""))
        elif end - segments[-1].start > _LONGEST_ANSWER:
            return []
        at = end
    return segments


def _first_sentence_that_asks(text: str) -> int:
    """Where the text begins after an introduction such as "Here are three questions:"."""
    first = next((at for at, char in enumerate(text) if char in "".join(QUESTION_MARKS)), 0)
    colon = max(text.rfind(mark, 0, first) for mark in (": ", ":\n", "："))
    return colon + 1 if colon >= 0 and not any(mark in text[:colon] for mark in ".。\n") else 0


def _asks(sentence: str) -> bool:
    """Whether a question is about something that is seen, in one of the languages that begin a question so.

    A rhetorical question is about everybody or speaks to the reader: "Who does not love dogs?".
    """
    said = [word.casefold().replace("’", "'") for word in _WORDS.findall(sentence)]
    if not said:
        return False
    languages = words().asking.get(said[0], ())
    return any(_points(said, language) for language in languages) or (not languages and said[0][0] >= _CJK)


def _points(said: list[str], language: Language) -> bool:
    return (not language.pointing or not set(language.pointing).isdisjoint(said)) and not any(
        word in language.rhetorical or word.endswith("n't") for word in said
    )
