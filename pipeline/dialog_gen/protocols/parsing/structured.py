"""Reads pairs out of JSON, Markdown tables and comma-separated values.

All become a text with segments, as `segments` gives them.
"""

import json
import re
from collections.abc import Iterator
from itertools import pairwise

from dialog_gen.protocols.parsing.choices import with_choices
from dialog_gen.protocols.parsing.clean import clean_field
from dialog_gen.protocols.parsing.comma_separated import comma_separated
from dialog_gen.protocols.parsing.languages import Kind, words
from dialog_gen.protocols.parsing.marks import QUESTION_MARKS, Mark

# Each token begins where the last one ended, so the time is linear even for text that is no JSON.
_TOKEN = re.compile(
    r"""
    "(?:[^"\\]|\\.)*+(?P<double>"|\Z)
  | '(?:[^'\\]|\\.|'(?!\s{0,9}[,:}\]]))*+(?P<single>'|\Z)
  | [{}\[\]():,] | [^\s{}\[\]():,"']+
    """,
    re.S | re.X,
)
_JSON = re.compile(r"\{\s?[\"']|\[\s?[\[(]\s?[\"']")
_ROLES: dict[str, Kind] = {
    "user": "Q", "human": "Q", "prompt": "Q", "query": "Q", "assistant": "A", "gpt": "A", "model": "A",
    "completion": "A", "output": "A",
}  # fmt: skip
_COLUMNS: tuple[Kind, ...] = ("Q", "O", "A")
_LITERALS = {"true": "yes", "false": "no", "null": "", "None": "", "True": "yes", "False": "no"}
_RULE = re.compile(r"^[| :-]*-[| :-]*$")
_CELL_END = re.compile(r"(?<!\\)\|")
_LABEL = re.compile(r"([^:：]{1,40})[:：] ?")  # noqa: RUF001


def structured(text: str) -> tuple[str, list[Mark]] | None:
    """The questions and answers of JSON, a Markdown table or comma-separated values in a cleaned text, or None."""
    items: list[tuple[Kind, str]] = []
    if start := _JSON.search(text):
        items = list(_json_items(text, start.start()))
    if not items and "|" in text:
        items = list(_table_items(text.split("\n")))
    if not items and "\n" in text and ("," in text or ";" in text):
        items = list(comma_separated(text))
    if not any(kind == "Q" for kind, _ in items):
        return None
    merged: list[tuple[Kind, str]] = []
    for kind, value in items:
        if kind == "O" and merged:
            at = len(merged) - 1 - (merged[-1][0] == "A" and len(merged) > 1)
            choices = merged[at][1].count("\n")
            letter = "" if re.match(r"\(?[A-Ha-h][.):]", value) else f"{'ABCDEFGH'[min(choices, 7)]}) "
            merged[at] = merged[at][0], f"{merged[at][1]}\n{letter}{value}"
        elif kind in ("Q", "A"):
            merged.append((kind, value))
    joined = ""
    segments: list[Mark] = []
    for kind, value in merged:
        segments.append(Mark(kind, len(joined), len(joined), True, "key"))
        joined += f"{value}\n"
    return joined, segments


def _kind(name: str) -> Kind | None:
    known = words()
    return known.kind(name) or known.kind(name.removesuffix("s")) or _ROLES.get(name.casefold())


def _json_items(text: str, start: int) -> Iterator[tuple[Kind, str]]:
    tokens = list(_TOKEN.finditer(text, start))
    key = ""
    role: Kind | None = None
    keys = dict.fromkeys(_string(word) for word, after in pairwise(tokens) if after[0] == ":")
    kinds = dict(zip(keys, with_choices(list(keys), [_kind(key) for key in keys]), strict=True))
    for at, token in enumerate(tokens):
        word = token[0]
        if word in "{[(:,":
            continue
        if word in "}])":
            key = ""
            continue
        value = _string(token)
        if at + 1 < len(tokens) and tokens[at + 1][0] == ":":
            key = value
        elif key in ("role", "from"):
            role = _kind(value)
        elif not value.strip():
            continue
        elif key.endswith(QUESTION_MARKS):
            yield "Q", key
            yield "A", value
        elif kind := kinds.get(key):
            yield kind, value
        elif role and key in ("content", "value", "text"):
            yield role, value
        elif not key and at >= 1 and tokens[at - 1][0] in "[(" and value.endswith(QUESTION_MARKS):
            yield "Q", value
        elif not key and at >= 3 and tokens[at - 3][0] in "[(" and _string(tokens[at - 2]).endswith(QUESTION_MARKS):
            yield "A", value


def _string(token: re.Match[str]) -> str:
    """The value of a string or number; empty for a string that has no end."""
    word = token[0]
    if word[0] not in "\"'":
        return _LITERALS.get(word, word)
    if not (token["double"] or token["single"]):
        return ""
    inner = word[1:-1]
    if word[0] == '"':
        try:
            inner = str(json.loads(word, strict=False))
        except ValueError:
            inner = inner.replace('\\"', '"')
    return _unlabelled(clean_field(inner.replace("\\'", "'")))


def _table_items(lines: list[str]) -> Iterator[tuple[Kind, str]]:
    rules = [number for number, line in enumerate(lines) if "|" in line and _RULE.match(line)]
    rows = [_cells(line) if "|" in line and not _RULE.match(line) else [] for line in lines]
    if not rules and sum(line.startswith("|") and line.endswith("|") for line in lines) < 2:
        return
    names = rows[rules[0] - 1] if rules and rules[0] else []
    header = with_choices(names, [_kind(name) for name in names])
    if "Q" not in header or not {"A", "O"} & set(header):
        header = []
    for row in rows[rules[0] + 1 :] if header else rows:
        first = _kind(row[0]) if len(row) == 2 else None
        asking = next((at for at, cell in enumerate(row[:-1]) if cell.endswith(QUESTION_MARKS)), None)
        if header:
            for wanted in _COLUMNS:
                for kind, cell in zip(header, row, strict=False):
                    if kind == wanted and cell:
                        yield wanted, cell
        elif first:
            yield first, row[1]
        elif asking is not None:
            yield "Q", row[asking]
            yield "A", row[asking + 1]


def _cells(line: str) -> list[str]:
    cells = _CELL_END.split(line.strip().removeprefix("|").removesuffix("|"))
    return [_unlabelled(cell.replace("\\|", "|").strip()) for cell in cells]


def _unlabelled(text: str) -> str:
    label = _LABEL.match(text)
    return text[label.end() :] if label and words().kind(label[1]) in ("Q", "A") and label.end() < len(text) else text
