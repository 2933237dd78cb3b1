"""Where a text quotes another one, in which labels are text: 'It says "Question: who? Answer: me"'."""
# ruff: noqa: RUF001 - quotation marks

import re
from collections.abc import Sequence

from dialog_gen.protocols.parsing.languages import words

_CLOSING = {'"': '"', "'": "'", "“": "”", "„": "“”", "«": "»", "‘": "’", "「": "」", "『": "』", "《": "》", "»": "«"}
_QUOTE = re.compile("|".join([*_CLOSING, "”", "’", "」", "』", "》"]))
_LONGEST = 400
"""Characters of a quotation."""
_LABEL = re.compile(r"[^\W\d][^\n:：]{0,40}[:：]")
_WORD = re.compile(r"\w")


def quotations(text: str) -> list[tuple[int, int]]:
    """The spans of quotations on one line, or of several lines if a label begins them; in order, without the marks."""
    spans: list[tuple[int, int]] = []
    start, closing = -1, ""
    for quote in _QUOTE.finditer(text):
        at, mark = quote.start(), quote[0]
        before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
        if start >= 0 and mark in closing and not before.isspace() and not (after.isalnum() or after == "_"):
            whole = _LABEL.match(text, start) is not None or text.find("\n", start, at) < 0
            if at - start <= _LONGEST and whole:
                spans.append((start, at))
            start = -1
        elif mark in _CLOSING and after.strip() and not (mark in "\"'" and before.isalnum()):
            start, closing = at + 1, _CLOSING[mark]
    return spans


def quoted(text: str, labels: Sequence[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """The quotations in which labels are text, in order; `labels` are the start, end and kind of each label.

    A word stands before such a quotation, on the line and after the last label; or it is a whole answer that begins
    with a question's label.
    """
    kept: list[tuple[int, int]] = []
    at = 0
    for start, end in quotations(text):
        while at < len(labels) and labels[at][0] < start:
            at += 1
        label, kind = labels[at - 1][1:] if at else (0, "")
        line = text.rfind("\n", max(start - _LONGEST, 0), start) + 1
        first = _LABEL.match(text, start)
        asks = first is not None and words().kind(first[0]) == "Q"
        if (kind == "A" and asks and not text[label : start - 1].strip()) or _WORD.search(
            text, max(line, label, start - _LONGEST), start
        ):
            kept.append((start, end))
    return kept
