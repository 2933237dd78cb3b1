"""The page in Markdown: it is read as it is, on GitHub, or as a page of a documentation site."""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from dialog_eval.tables.overview import overview
from dialog_eval.tables.page import Page
from dialog_eval.tables.pooling import Cell, Comparison, Row
from dialog_eval.tables.wording import (
    caption,
    difference_mark,
    headings,
    interval,
    is_held,
    items,
    marks_note,
    mean_mark,
    note_lines,
    overview_caption,
    shown_as,
    spread,
)

FOREST_TEXT = "Paired differences to the baseline, with 95 % intervals"
SWEEP_TEXT = "Measures over the share of the baseline in blends, or over the noise of a training, with 95 % intervals"


def markdown(page: Page, forest: str | None, sweep: str | None) -> str:
    """The page; `forest` and `sweep` are relative links to the plots. Differences and spreads have their own rows."""
    lines = [f"# {_md(page.title)}", ""]
    if page.trainings:
        lines += [" ".join(f"{_md(one.label)}: {_md(one.text)}." for one in page.trainings), ""]
    lines += [*(f"- **{_md(subject)}**{_plain_intervals(_md(text))}" for subject, text in page.verdict), ""]
    lines += _figure(FOREST_TEXT, forest)
    if systems := overview(page.sections):
        table = [_head(systems[0]), *(row for group in systems for row in _rows(group))]
        lines += ["## Overview", "", *_aligned(table), "", overview_caption(systems, page.sections), ""]
    if note := marks_note(page.sections):
        lines += [note, ""]
    lines += _figure(SWEEP_TEXT, sweep)
    lines += _trainings(page)
    for section, (title, details) in zip(page.sections, headings(page.sections), strict=True):
        table = [_head(section), *_rows(section), ["items", *map(items, section.columns)]]
        body = [*_aligned(table), "", caption(section, _md), *_notes(section.notes)]
        lines += _folded(f"{_md(title)}: {_md(details)}", body)
    return "\n".join(lines)


def _figure(text: str, link: str | None) -> list[str]:
    return [] if link is None else [f"![{text}]({quote(link)})", ""]


def _folded(summary: str, body: Iterable[str]) -> list[str]:
    """A part that is folded away. `markdown="1"` is for documentation sites; GitHub needs the empty lines."""
    return ['<details markdown="1">', f"<summary>{summary}</summary>", "", *body, "", "</details>", ""]


def _trainings(page: Page) -> list[str]:
    lines: list[str] = []
    for one in page.trainings:
        settings = ", ".join(f"{_md(key)} = {_md(value)}" for key, value in one.settings.items())
        told = [
            f"{_md(one.text)}.",
            one.test_images,
            _md(one.method),
            f"Settings not shared by all: {settings}." if settings else "",
        ]
        lines.append(f"- **{_md(one.label)}**: {' '.join(filter(None, told))}")
    return _folded("What was trained on what", lines) if lines else []


def _notes(notes: dict[str, list[str]]) -> list[str]:
    lines: list[str] = []
    for label, some in notes.items():
        lines.append(f"- {_md(label)}")
        lines += [f"    - {_md(part)}" for note in some for part in note_lines(note)]
    return ["", *lines] if lines else []


def _head(group: Comparison) -> list[str]:
    return ["", *(_md(column.name) for column in group.columns)]


def _rows(group: Comparison) -> list[list[str]]:
    names = [column.name for column in group.columns]
    shown = shown_as(group)
    table: list[list[str]] = []
    for row in group.rows:
        mark = " (baseline)" if row.label == group.baseline else ""
        table.append([_md(row.label) + mark, *(_mean(row, name, group) for name in names)])
        cells = [row.cells.get(name) for name in names]
        differences = [_difference(cell, group) for cell in cells]
        spreads = [spread(cell, shown) if cell else "" for cell in cells]
        table += [[told, *some] for told, some in (("↳ difference", differences), ("↳ spread", spreads)) if any(some)]
    for name, figures in group.references.items():
        table.append([_md(name), *(shown.number(figures[column]) if column in figures else "" for column in names)])
    return table


def _mean(row: Row, name: str, group: Comparison) -> str:
    if name not in row.cells:
        return ""
    shown, estimate = shown_as(group), row.cells[name].estimate
    return f"{shown.number(estimate.mean)}{mean_mark(row, name, group)} {interval(estimate, shown)}"


def _difference(cell: Cell | None, group: Comparison) -> str:
    if cell is None or cell.difference is None:
        return ""
    shown, bold = shown_as(group), "**" if is_held(cell, group) else ""
    mean = f"{shown.number(cell.difference.mean, '+')}{difference_mark(cell, group)}"
    return f"{bold}{mean} {interval(cell.difference, shown, '+')}{bold}"


def _aligned(table: Sequence[list[str]]) -> list[str]:
    """The lines of an aligned Markdown table, from its head and rows; numbers are right-aligned."""
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [f"| {' | '.join([label.ljust(first), *map(str.rjust, cells, others)])} |" for label, *cells in table]
    rule = " | ".join(["-" * first, *("-" * (width - 1) + ":" for width in others)])
    return [lines[0], f"| {rule} |", *lines[1:]]


def _plain_intervals(escaped: str) -> str:
    """Takes the escapes off intervals, which no link can follow: they stay readable in the raw text."""
    return re.sub(r"\\\[([-+0-9., ]+)\\\]", r"[\1]", escaped)


def _md(text: str) -> str:
    """Escapes a text for Markdown; underscores inside words need no escape and stay readable."""
    marked = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    if text[:1].isspace():
        marked = f" {marked}"
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
