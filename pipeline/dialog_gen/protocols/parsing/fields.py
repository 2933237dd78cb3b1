"""Cleans the text of one question or answer."""
# ruff: noqa: RUF001 - full-width punctuation

import re

from dialog_gen.protocols.parsing.clean import plain
from dialog_gen.protocols.parsing.languages import ASKING, GREEK_MARK, words
from dialog_gen.protocols.parsing.marks import find_marks

_WRAPPERS = {'"': '"', "“": "”", "'": "'", "*": "*", "_": "_", "`": "`"}
_PARENTHESES = {"(": ")", "（": "）"}
_BULLET = re.compile(r"(?:(?:[-–—*•>:：→⇒➜➔❓❔✅✔☑➡👉💬💡🔍🔹🔸🔵🟢🔴🟡▪●◦‣]\ufe0f?|[-=]{1,2}>|--|=) ){1,4}|[→⇒➜➔]")
_PLACEHOLDER = re.compile(
    r"[\[<{](?:[^\]>}]{0,40}(?:question|answer|pregunta|respuesta)[^\]>}]{0,40}"
    r"|(?:your|insert|describe|number|colou?r|name|object|description|text|location|place|word)\b[^\]>}]{0,40})[\]>}]\.?"
    r"|(?:your|insert(?: your| the)?|write your|type your) (?:question|answer|response)(?: text)? (?:goes )?here\.?",
    re.I,
)
_NOT_KNOWN = ("n/a", "tbd", "null")
_LABELLED = re.compile(r"\W{0,6}(?P<label>[^\W\d][^\n:：]{0,40})[:：] ?(?P<text>[^\n]*)\n?")
_AFTER_QUESTION = re.compile(rf"(?<=[{ASKING}])\s[^\w\n]{{0,6}}(?P<label>[^\W\d][^\n:：]{{0,20}})[:：]")
_ASKS = re.compile(f"[{ASKING}]")
_MOST_DETAILS = 3


def field(text: str, *, is_answer: bool = False) -> str:
    """The text on one line without bullets, quotes and emphasis around it; an answer also without parentheses."""
    text = " ".join(text.replace(GREEK_MARK, ";").split())
    if bullet := _BULLET.match(text):
        text = text[bullet.end() :]
    if is_answer and text.startswith(("/ ", "| ")):
        text = text[2:]
    wrappers = _WRAPPERS | _PARENTHESES if is_answer else _WRAPPERS
    if text[-1:] in ("*", "_") and text.count(text[-1]) == 1 and text[-2:-1].isalnum():
        text = text[:-1]  # it opened before the label
    while len(text) > 1 and wrappers.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text


def without_details(question: str) -> str:
    """A question without lines before it that only say something of it, "Category: color", and without its options."""
    if (options := _AFTER_QUESTION.search(question)) and words().kind(options["label"]) == "O":
        question = question[: options.start()]
    for _ in range(_MOST_DETAILS):
        line = _LABELLED.match(question)
        if line is None or words().kind(line["label"]) not in ("D", "O"):
            break
        if _ASKS.search(line["text"]):
            return question[line.start("text") :]
        question = question[line.end() :]
    return question


def without_repeats(text: str) -> str:
    """An answer without the copies of it that a model adds: "a dog Answer: a dog Answer: a do" becomes "a dog"."""
    if ":" not in text and "：" not in text:
        return text
    label = next((m for m in find_marks(text) if m.kind == "A" and m.start > 0), None)
    if label is None:
        return text
    once, rest = text[: label.start], text[label.end :]
    after = next((m.start for m in find_marks(rest) if m.kind == "A"), len(rest))
    first, copy = plain(once), plain(rest[:after].strip())
    return once if first == copy or (after == len(rest) and first.startswith(copy)) or not copy.strip() else text


def is_blank(text: str) -> bool:
    """Whether a text says nothing, such as dots or "[your answer]"."""
    if text.casefold().strip(".") in _NOT_KNOWN or (text.startswith("??") and not text.strip("?")):
        return True
    return not text.strip(" .…-–—_*|~[]()<>\"'") or is_placeholder(text)


def is_refusal(text: str) -> bool:
    """Whether a text refuses to answer because of the image, such as "I'm sorry, I can't see the image."."""
    return words().refusal.match(text.replace("’", "'")) is not None


def is_format(question: str, answer: str) -> bool:
    """Whether a pair repeats the names of the format's parts: "Question 1" with "Answer 1"."""
    return words().kind(question) == "Q" and words().kind(answer) == "A"


def is_placeholder(text: str) -> bool:
    """Whether a text is a part of the format, such as "[your answer]"."""
    return _PLACEHOLDER.fullmatch(text) is not None
