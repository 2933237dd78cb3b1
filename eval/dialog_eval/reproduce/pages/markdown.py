"""Markdown of pages of plans."""

import re
from collections.abc import Sequence

from dialog_gen.core.visible import visible


def md(text: str) -> str:
    """A text with what Markdown and HTML would read in it escaped."""
    marked = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", _one_line(text))
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def prose(text: str) -> str:
    """A text that may have Markdown of its own, in one line."""
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> list[str]:
    """The lines of an aligned table; all but the first `text_columns` columns are right-aligned."""
    everything = [list(head), *map(list, rows)]
    widths = [max(3, *(len(row[column]) for row in everything)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if place < text_columns else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if place < text_columns else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return [line(everything[0]), f"| {' | '.join(rule)} |", *map(line, everything[1:])]
