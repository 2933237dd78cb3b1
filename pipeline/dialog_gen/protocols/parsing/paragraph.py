"""Reads a paragraph that asks and answers in turn: "What is it? A dog. Where is it? On a sofa."."""
# ruff: noqa: RUF001 - full-width punctuation and apostrophes

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from dialog_gen.protocols.parsing.languages import ASKING, Inquiry, words
from dialog_gen.protocols.parsing.marks import QUESTION_MARKS, Mark

_SENTENCE_END = re.compile(rf"(?<=[.!।۔…{ASKING}])[\"'”’»)]{{0,3}}\s|(?<=[。！？])\s?")
_CJK = "\u1100"
_LONGEST_ANSWER = 300
"""Characters; a longer text between two questions is a story or a description."""
_WORDS = re.compile(rf"[^\s.,;:!¿¡،।۔{ASKING}]+")


def paragraph(text: str) -> list[Mark]:
    """The segments of such a text; none if it is anything else, such as a story in which people ask."""
    start = _first_sentence_that_asks(text)
    segments: list[Mark] = []
    questions: list[str] = []
    at = start
    for end in [m.end() for m in _SENTENCE_END.finditer(text, start)] + [len(text)]:
        sentence = text[at:end].strip()
        if not sentence:
            continue
        if sentence.endswith(QUESTION_MARKS):
            if segments and segments[-1].kind == "Q":
                return []
            questions.append(sentence)
            segments.append(Mark("Q", at, at, True, ""))
        elif not segments:
            return []
        elif segments[-1].kind == "Q":
            segments.append(Mark("A", at, at, True, ""))
        elif end - segments[-1].start > _LONGEST_ANSWER:
            return []
        at = end
    return segments if _all_ask(questions) else []


def _first_sentence_that_asks(text: str) -> int:
    """Where the text begins after an introduction such as "Here are three questions:"."""
    first = next((at for at, char in enumerate(text) if char in "".join(QUESTION_MARKS)), 0)
    colon = max(text.rfind(mark, 0, first) for mark in (": ", ":\n", "："))
    return colon + 1 if colon >= 0 and not any(mark in text[:colon] for mark in ".。\n") else 0


def _all_ask(questions: Sequence[str]) -> bool:
    """Whether all questions are about something that is seen, each in one of the languages.

    A rhetorical question is about everybody or speaks to the reader: "Who does not love dogs?". A word that asks within
    a question, not at its beginning, may be a word of another language. It counts beside another such word, or if its
    letters tell that it is not.
    """
    folded = [unicodedata.normalize("NFC", question.casefold().replace("’", "'")) for question in questions]
    asked = [(question, said, _asking(question, said)) for question in folded if (said := _WORDS.findall(question))]
    in_all: defaultdict[Inquiry, set[str]] = defaultdict(set)
    for *_, asking in asked:
        for inquiry, found in asking.items():
            in_all[inquiry] |= found
    certain = {inquiry for inquiry, found in in_all.items() if len(found) > 1 or not "".join(found).isascii()}
    return len(asked) == len(questions) and all(
        any(
            inquiry.is_of_what_is_seen(question, said)
            for inquiry in asking
            if inquiry in certain or said[0] in inquiry.first
        )
        or _has_unspaced_words(question, said)
        for question, said, asking in asked
    )


def _asking(question: str, said: Sequence[str]) -> dict[Inquiry, set[str]]:
    """The words of a question that ask, by language."""
    known = words()
    found: defaultdict[Inquiry, set[str]] = defaultdict(set)
    for at, word in enumerate(said):
        for inquiry in known.inquiries.get(word, ()):
            if at == 0 or word in inquiry.anywhere:
                found[inquiry].add(word)
    for inquiry in known.unspaced if not question.isascii() else ():
        for part in inquiry.parts:
            if part in question:
                found[inquiry].add(part)
    return found


def _has_unspaced_words(question: str, said: Sequence[str]) -> bool:
    """Whether a question is in a script in which no word at its beginning tells that it asks."""
    return said[0][0] >= _CJK and all(inquiry.is_of_what_is_seen(question, said) for inquiry in words().unspaced)
