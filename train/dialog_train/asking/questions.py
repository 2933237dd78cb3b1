"""The forms of English questions, and which answers can be meant as an answer to them (TAP-C, arXiv 2203.07190)."""

import re
from typing import Literal

Form = Literal["yes/no", "choice", "number", "other"]
"""What a question asks for: "choice" names its answers, as in "Is the star small or large?"."""


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


COPULAS = word_set("is are was were")
AUXILIARIES = COPULAS | word_set("do does did can could has have had will would should may might must")
# What is left of auxiliaries before "n't".
_WHOLE = {"ca": "can", "wo": "will"}
_NEGATED = re.compile(rf"^({'|'.join(sorted(AUXILIARIES | _WHOLE.keys()))})n['\u2019]t\b", re.IGNORECASE)
_IS = re.compile(r"^(what|who|where)['\u2019]s\b", re.IGNORECASE)
YES_NO = word_set("yes no")
_COUNTED = tuple(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty""".split()  # noqa: SIM905 - a list of twenty-one lines is no better
)
NUMBER_WORDS = frozenset(_COUNTED) | word_set("thirty forty fifty sixty seventy eighty ninety hundred dozen")
_AMOUNTS = NUMBER_WORDS | word_set(
    """none no many few several some lots lot plenty both couple pair group crowd multiple numerous dozens hundreds
    thousands"""
)
_OF_A_CHOICE = YES_NO | word_set("both neither either none")
# What says the same; a word that is not here says only what itself does.
_SAME = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0", "grey": "gray"}
_ARTICLES = word_set("a an the")
# Questions whose answer is no number; others, such as "What number is on the bus?", may have any.
_NO_NUMBER = re.compile(
    r"(?:what|which) (?:colou?r|shape|texture|pattern|material|animal|breed|fruit|sport|room|gender|kind|type)s?\b"
    "|where|who|why"
)


def tidy(text: str) -> str:
    """A question or an answer with single spaces and without marks at its end."""
    return " ".join(text.split()).rstrip(" ?.!")


def answer_key(answer: str) -> str:
    """The text by which equal answers are found: `tidy`, in lower case."""
    return tidy(answer).lower()


def meaning(answer: str) -> frozenset[str]:
    """The words of an answer, by which answers that say the same are found: "Two dogs" and "2 dog" have the same.

    Articles are left out, and numbers are digits. Synonyms such as "couch" and "sofa" stay different.
    """
    words = [_SAME.get(word, word) for word in _words(answer_key(answer)) if word not in _ARTICLES]
    return frozenset(word[:-1] if re.search(r"..[^s]s$", word) else word for word in words) or word_set(answer)


def is_number(answer: str) -> bool:
    """Whether an answer has a number in it, in digits or as a word."""
    return any(word[0].isdigit() or word in NUMBER_WORDS for word in _words(answer))


def expanded(question: str) -> str:
    """A question without contractions: "Isn't the cat black?" is answered as "Is the cat black?" is."""
    question = _NEGATED.sub(lambda found: _WHOLE.get(found[1].lower(), found[1]), question)
    return _IS.sub(r"\1 is", question)


def form_of(question: str) -> Form:
    """The form of a question, by its first words; "other" also for a text that is no question."""
    words = expanded(tidy(question)).lower().split()
    first = words[0] if words else ""
    if first in AUXILIARIES:
        return "choice" if "or" in words else "yes/no"
    if words[:2] == ["how", "many"]:
        return "number"
    return "other"


def fits(question: str, answer: str) -> bool:
    """Whether an answer is of the form that the question asks for; True wherever the form does not tell."""
    key, form = answer_key(answer), form_of(question)
    if form == "yes/no":
        return key in YES_NO
    if form == "choice":
        return key in _OF_A_CHOICE or set(_words(key)) <= set(_words(question))
    if form == "number":
        return key not in YES_NO and (is_number(key) or bool(set(_words(key)) & _AMOUNTS))
    no_number = _NO_NUMBER.match(tidy(question).lower())
    return key not in YES_NO and not (no_number and re.fullmatch(r"[0-9.,]+", key))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())
