"""Transcripts: in "User: X? Assistant: Y" the speakers' names become labels of questions and answers."""
# ruff: noqa: RUF001 - full-width punctuation

import re
from collections import Counter
from collections.abc import Sequence

from dialog_gen.protocols.parsing.languages import ASKING, words

_SPEAKER = re.compile(
    r"""
    (?:^|(?<=[.?!。？！)][ ])) (?P<before>[^\w\n]{0,6}(?:\d{1,2}[.)][ ]?)?[*_]{0,3})
    (?P<name>[^\W\d_]{2,14}(?:[ ][^\W\d_])?) (?P<after>[ ]?\d{0,2}[*_]{0,3}[ ]?[:：])
    """,
    re.M | re.X,
)
_ASKS = re.compile(f"[{ASKING}]")
_LABELS = {"Q": "Question", "A": "Answer"}
_LEAST_TURNS = 4


def turns_as_pairs(text: str) -> str:
    """The text with labels in the place of the speakers' names, if it is a transcript of the model's own.

    Such a text begins with a turn of the user, or with an introduction without questions, and has no other labels:
    after a list of questions and answers, "User:" begins a turn that the model invented.
    """
    every = [*_SPEAKER.finditer(text)]
    if other := _other_speaker(text, every):
        return _SPEAKER.sub(lambda m: f"{m['before']}{other.get(_name(m), m['name'])}{m['after']}", text)
    two = _two_speakers(text, every)
    found = [(m, two.get(_name(m)) or _label(m)) for m in every]
    speakers = [label for _, label in found if label in _LABELS]
    if speakers[:2] != ["Q", "A"] or any(label == "labelled" for _, label in found):
        return text
    first = next(m for m, label in found if label in _LABELS)
    introduction = text[: first.start()].rstrip(" ")
    if introduction and (not introduction.endswith(("\n", ":", "：")) or _ASKS.search(introduction)):
        return text

    def relabelled(speaker: re.Match[str]) -> str:
        label = two.get(_name(speaker)) or _label(speaker)
        return f"{speaker['before']}{_LABELS[label]}{speaker['after']}" if label in _LABELS else speaker[0]

    return _SPEAKER.sub(relabelled, text)


def _two_speakers(text: str, found: Sequence[re.Match[str]]) -> dict[str, str]:
    """The labels of two unknown names, such as "Alice" and "Bob", of which one always asks and the other answers.

    One other name may come before them, as in an introduction.
    """
    introduced = found[:1] and not any(_name(m) == _name(found[0]) for m in found[1:])
    found = found[1:] if introduced else found  # "Note: these are guesses."
    names = [_name(m) for m in found]
    if len(names) < _LEAST_TURNS or len(set(names)) != len(_LABELS) or any(map(_label, found)):
        return {}
    asks = [
        bool(_ASKS.search(text, m.end(), end))
        for m, end in zip(found, [*(m.start() for m in found[1:]), len(text)], strict=True)
    ]
    if names != [names[at % 2] for at in range(len(names))] or asks != [at % 2 == 0 for at in range(len(names))]:
        return {}
    return dict(zip(names[:2], _LABELS, strict=True))


def _other_speaker(text: str, found: Sequence[re.Match[str]]) -> dict[str, str]:
    """The label of an unknown name that takes turns with a known label: "Query: X? Answer: Y"."""
    counts = Counter(map(_name, found))
    found = [m for m in found if counts[_name(m)] > 1]
    names = [_name(m) for m in found]
    if (
        len(names) < _LEAST_TURNS
        or len(set(names)) != len(_LABELS)
        or names != [names[at % 2] for at in range(len(names))]
    ):
        return {}
    kinds = [words().kind(name) for name in names[:2]]
    if kinds == ["Q", None]:
        return {names[1]: "Answer"}
    ends = [*(m.start() for m in found[1:]), len(text)]
    asks = all(_ASKS.search(text, m.end(), end) for m, end in list(zip(found, ends, strict=True))[::2])
    return {names[0]: "Question"} if kinds == [None, "A"] and asks else {}


def _name(speaker: re.Match[str]) -> str:
    return speaker["name"].casefold()


def _label(speaker: re.Match[str]) -> str:
    """What the name announces: "Q" for a user, "A" for an assistant, "labelled" for a label that needs no change."""
    name = _name(speaker)
    known = words()
    return known.speakers.get(name) or ("labelled" if known.kind(name) in ("Q", "A") else "")
