"""Multiple-choice questions: the answer "B" becomes the text of choice B."""

# ruff: noqa: RUF001 - full-width punctuation

import re
from collections.abc import Sequence
from itertools import pairwise

from dialog_gen.protocols.parsing.clean import plain
from dialog_gen.protocols.parsing.languages import ASKING, Kind, words

_CHOICE = re.compile(r"(?:^|(?<=\s))[*(\[]{0,2}(?P<key>[A-Ha-h1-8])[.):\]][*)]{0,2}\s?")
_CHOSEN = re.compile(r"(?:[^\W\d]{2,12} )?[*(\[]{0,2}(?P<key>[A-Ha-h1-8])(?:[\s.)\]*]*$|[.):\]*]{1,3}\s|\s[-–—]\s)")
_LETTERED = re.compile(r"\W{0,3}(?:(?:option|choice)[ _]?)?\W?([A-H])\W{0,3}", re.I)
_COUNTED = re.compile(r"\W{0,3}?(?:\(?(?P<key>[a-h])[.)]|\(?(?P<capital>[A-H])\))[*_]{0,3} ")
_BETWEEN = " \n,;/-–•*"
_STEM_END = (*ASKING, *":：.…)")


def resolved(question: str, answer: str) -> tuple[str, str] | None:
    """A question without its choices, and the text of the choice that the answer names.

    Gives the pair as it is if the question has no choices, and None if no choice was made.
    """
    stem, choices = _choices(question)
    chosen = _CHOSEN.match(answer.strip())
    if not choices:
        listed = _choices(answer)
        return None if "A" in listed[1] and not listed[0].strip() else (question, answer)
    if chosen is None:
        return (question, answer) if "1" in choices else (stem, answer)
    text = choices.get(chosen["key"].upper())
    return (stem, text) if text else None


def without_letters(texts: Sequence[str]) -> list[str]:
    """Questions, or answers, without the letters that all of them begin with: "a) What is it?", "b) Where is it?"."""
    letters = [_COUNTED.match(text) for text in texts]
    if len(texts) < 2 or not all(letters) or any(_choices(text)[1] for text in texts):
        return list(texts)
    return [text[letter.end() :] if letter else text for text, letter in zip(texts, letters, strict=True)]


def with_choices(names: Sequence[str], kinds: Sequence[Kind | None]) -> list[Kind | None]:
    """The kinds of columns or keys, with "A", "B", ... as choices; "A" without "B" is an answer."""
    letters = [(m := _LETTERED.fullmatch(name)) and m[1].upper() for name in names]
    if not {"A", "B"} <= set(letters):
        return list(kinds)
    return ["O" if letter else kind for kind, letter in zip(kinds, letters, strict=True)]


def lists_choices(text: str) -> bool:
    """Whether a text begins with a list of choices."""
    stem, choices = _choices(text)
    return bool(choices) and not stem.strip()


def _choices(text: str) -> tuple[str, dict[str, str]]:
    """The text before its choices, and the choices by letter or number."""
    marks = list(_CHOICE.finditer(text))
    first = next((at for at, pair in enumerate(pairwise(marks)) if _begins(*pair)), None)
    if first is None:
        return text, {}
    stem = text[: marks[first].start()].rstrip(_BETWEEN)
    *before, last = stem.rsplit("\n", 1) if "\n" in stem else stem.rsplit(None, 1) if " " in stem else ("", stem)
    if words().kind(last) == "O":
        stem = "".join(before).rstrip()
    if stem and not stem.endswith(_STEM_END):
        return text, {}
    run = [marks[first]]
    for mark in marks[first + 1 :]:
        if ord(mark["key"]) == ord(run[-1]["key"]) + 1:
            run.append(mark)
    ends = [*(mark.start() for mark in run[1:]), len(text)]
    choices = {m["key"].upper(): text[m.end() : end].strip(_BETWEEN) for m, end in zip(run, ends, strict=True)}
    if not all(plain(choice).strip(".?!") for choice in choices.values()):  # "Is it Mr. A. or Mrs. B.?" has none
        return text, {}
    return stem, choices


def _begins(first: re.Match[str], second: re.Match[str]) -> bool:
    return (first["key"], second["key"]) in (("A", "B"), ("a", "b"), ("1", "2"))
