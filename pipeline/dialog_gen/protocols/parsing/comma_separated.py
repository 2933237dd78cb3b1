"""Reads questions and answers out of lines of comma-separated values, with or without a header."""
# ruff: noqa: RUF001 - full-width punctuation

import csv
import re
from collections.abc import Iterator, Sequence

from dialog_gen.protocols.parsing.choices import with_choices
from dialog_gen.protocols.parsing.languages import ASKING, Kind, words
from dialog_gen.protocols.parsing.marks import QUESTION_MARKS

_HEADER = re.compile(r"^[^\n,;|]{1,40}(?:[,;][^\n,;|]{1,40}){1,5}$", re.M)
_ROW = re.compile(
    rf"^(?:\"?\d{{1,3}}\"?[,;] ?)?\"?[^\n\":：{ASKING}]{{2,300}}[{ASKING}]\"?(?P<separator>[,;]) ?[^\n]", re.M
)
_FEWEST_ROWS = 2
"""Rows without a header, below which a line is a sentence."""


def comma_separated(text: str) -> Iterator[tuple[Kind, str]]:
    """The questions and answers of a cleaned text, in order; none if it is anything else."""
    for header in _HEADER.finditer(text):
        separator = ";" if ";" in header[0] else ","
        names = [cell.strip(' "') for cell in header[0].split(separator)]
        kinds = with_choices(names, [words().kind(name) for name in names])
        if "Q" in kinds and {"A", "O"} & set(kinds):
            yield from _items(text[header.end() :].strip("\n"), separator, kinds)
            return
    rows = list(_ROW.finditer(text))
    separators = {row["separator"] for row in rows}
    if len(rows) >= _FEWEST_ROWS and len(separators) == 1:
        found = list(_items(text[rows[0].start() :], separators.pop(), []))
        yield from found if len(found) >= 2 * _FEWEST_ROWS else ()


def _items(lines: str, separator: str, kinds: Sequence[Kind | None]) -> Iterator[tuple[Kind, str]]:
    try:
        rows = list(csv.reader(lines.split("\n"), delimiter=separator, skipinitialspace=True))
    except csv.Error:  # such as a cell of more characters than the reader takes
        return
    for row in rows:
        asking = next((at for at, cell in enumerate(row[:-1]) if cell.rstrip().endswith(QUESTION_MARKS)), None)
        choices: list[str] = []
        if kinds and len(row) == len(kinds):
            cells = {kind: cell for kind, cell in zip(kinds, row, strict=True) if kind}
            question, answer = cells["Q"], cells.get("A", "")
            choices = [cell for kind, cell in zip(kinds, row, strict=True) if kind == "O"]
        elif asking is not None:  # commas without quotes: those after the question are part of the answer
            first = kinds.index("Q") if kinds else int(row[0].isdigit())
            question = separator.join(row[min(first, asking) : asking + 1])
            answer = separator.join(row[asking + 1 :])
        else:
            return
        yield "Q", question
        for choice in choices:
            yield "O", choice
        yield "A", answer
