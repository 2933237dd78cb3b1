"""Finds the columns of URL and caption in a list, and the delimiter of a CSV, from the names of its columns."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.plural import count_of

URL, CAPTION = "url", "caption"

STAND_FOR: Final[dict[str, tuple[str, ...]]] = {
    URL: ("url", "image_url", "img_url"),
    CAPTION: ("caption", "text", "alt", "top_caption"),
}
"""If a list has no column `url`, one of these names stands for it, in upper or lower case; `caption` likewise."""

_DELIMITERS: Final = (",", ";", "\t", "|")


def find_column(role: str, column: str | int, names: Sequence[str], path: Path) -> int:
    """The number of a column, given by name or number; `role` is what it contains: `url` or `caption`.

    Raises UsageError if there is no such column, or more than one.
    """
    if isinstance(column, int):
        if column < len(names):
            return column
        raise UsageError(
            f"{path} has {count_of(len(names), 'column')}, the {role} should be in number {column} (counted from 0)."
        )
    flag = f"--{role}-column"
    if names.count(column) > 1:
        raise UsageError(f"{path} has {names.count(column)} columns {column!r}, which one is the {role}?")
    if column in names:
        return names.index(column)
    found = _standing_for(column, names)
    if len(found) > 1:
        shown = " and ".join(names[place] for place in found)
        raise UsageError(f"{path} has the columns {shown}, which one is the {role}? Choose one with {flag}.")
    if found:
        return found[0]
    others = [name for name in STAND_FOR.get(column, ()) if name != column]
    also = f" (or {', '.join(others)})" if others else ""
    none = ', or --caption-column "" for none' if role == CAPTION else ""
    raise UsageError(
        f"{path} has no column {column!r}{also} for the {role}: {did_you_mean(column, names)}. "
        f"Choose one with {flag} NAME{none}."
    )


def has_column(column: str, names: Sequence[str]) -> bool:
    """Whether a name, or one that stands for it, is among the names."""
    return column in names or bool(_standing_for(column, names))


def delimiter_of(header: str, wanted: Sequence[str]) -> str:
    """The delimiter of a CSV with this first line: the one under which the most of the `wanted` columns are there.

    A comma is preferred, and is the answer if no wanted column is there.
    """

    def found(delimiter: str) -> int:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0
        return sum(has_column(name, names) for name in wanted)

    return max(_DELIMITERS, key=found)  # the first of equals


def _standing_for(column: str, names: Sequence[str]) -> list[int]:
    known = STAND_FOR.get(column, ())
    return [place for place, name in enumerate(names) if name.strip().lower() in known]
