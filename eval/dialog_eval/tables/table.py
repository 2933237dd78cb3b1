"""`dialog-eval table`: combines results.json files into a Markdown or HTML table, with a plot of the sweep."""

import base64
import os
import re
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from dialog_eval.tables.overview import overview
from dialog_eval.tables.plots import noise_plot, sweep_plot
from dialog_eval.tables.pooling import Cell, Column, Comparison, Estimate, Section, pool
from dialog_eval.tasks.base import presentation_of
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_file

_PLOT = "Measures over the share of the baseline in blends, or over the noise of a training, with 95 % intervals"


def write_table(
    files: Sequence[str | PathLike[str]], out: str | PathLike[str], plot: str | PathLike[str] | None = None
) -> None:
    """Writes the table of results.json files to `out` (.md or .html), and the plot of their sweep to `plot` (.png).

    There is one section per task, dataset, protocol and baseline, with one row per label and one column per measure.
    With several tasks, an overview precedes the sections. The HTML is a single file that contains the plot; the
    Markdown links to the plot. Existing files are replaced only after everything is computed.

    Raises UsageError for other suffixes, for files that are not results or cannot be combined (see `pool`), and for
    `plot` without a sweep in the files; MissingExtraError if the plot needs matplotlib and it is not installed;
    DialogGenError if the disk refuses a write.
    """
    files, out, plot = [Path(file) for file in files], Path(out), None if plot is None else Path(plot)
    if out.suffix not in (".md", ".html"):
        raise UsageError(
            f"{out}: a table is written as .md or .html, not as {out.suffix or 'a file without suffix'!r}."
        )
    if plot is not None and plot.suffix != ".png":
        raise UsageError(f"{plot}: a plot is written as .png, not as {plot.suffix or 'a file without suffix'!r}.")
    sections = pool(files)
    has_noise = any(row.noise is not None for section in sections for row in section.rows)
    png = None if plot is None else (noise_plot if has_noise else sweep_plot)(sections)
    if out.suffix == ".html":
        table = _html(sections, png)
    else:
        # A relative link, so that both files can be moved, committed or shared together.
        link = None if plot is None else Path(os.path.relpath(plot, out.parent)).as_posix()
        table = _markdown(sections, link)
    if plot is not None and png is not None:
        write_file(plot, png)
    write_file(out, table.encode())


def _percent(share: float, sign: str = "") -> str:
    """A share as "80.3", with sign "+" as "+4.4"; never "-0.0"."""
    return f"{round(100 * share, 1) + 0.0:{sign}.1f}"


def _interval(estimate: Estimate, sign: str = "") -> str:
    return f"[{_percent(estimate.low, sign)}, {_percent(estimate.high, sign)}]"


def _is_significant(difference: Estimate) -> bool:
    """Whether the printed interval excludes 0; so [+0.0, +0.7] is never marked as significant."""
    return round(100 * difference.low, 1) > 0 or round(100 * difference.high, 1) < 0


def _spread(cell: Cell) -> str:
    return "" if cell.spread is None else f"± {_percent(cell.spread)} (n = {cell.repetitions})"


def _items(column: Column) -> str:
    images = "" if column.images is None else f", {column.images:,} images"
    return f"{column.items:,} items{images}" if column.items else ""


def _headings(sections: list[Section]) -> list[tuple[str, str]]:
    """Title and details of each section. They name the baseline if another section differs only in the baseline."""
    keys = [(section.task, section.dataset, section.protocol) for section in sections]
    return [
        (
            presentation_of(section.task).title,
            f"{section.dataset}, {section.protocol}"
            + (f", against {section.baseline}" if section.baseline and keys.count(key) > 1 else ""),
        )
        for section, key in zip(sections, keys, strict=True)
    ]


def _overview_caption(systems: list[Comparison]) -> str:
    """The caption of a table: explains its numbers."""
    differences = (
        "Below: paired differences to the nearest baseline above, bold where their interval does not touch 0. "
        if any(some.baseline for some in systems)
        else ""
    )
    return (
        f"In percent, in brackets 95 % bootstrap intervals. {differences}More measures, and on how many items, follow."
    )


def _caption(section: Section, text: Callable[[str], str] = str) -> str:
    """The caption of a table: explains its numbers."""
    images = any(column.images for column in section.columns)
    parts = [f"In percent, in brackets 95 % bootstrap intervals over {'images' if images else 'items'}."]
    if section.baseline is None:
        parts.append("No differences: no baseline was measured here.")
    else:
        parts.append(
            f"Below: paired differences to {text(section.baseline)} in percentage points, item by item, with their "
            "intervals; bold where that does not touch 0."
        )
    if any(cell.spread is not None for row in section.rows for cell in row.cells.values()):
        parts.append("±: standard deviation over n repetitions (seeds), of which the figures are the mean.")
    else:
        parts.append("One repetition each.")
    if any(row.label.endswith(", blind") for row in section.rows):
        parts.append("Blind: with the mean image in every image's place.")
    if section.references:
        parts.append("Rows without intervals need no model.")
    items = {_items(column) for column in section.columns if column.items}
    parts.append(f"{items.pop()}." if len(items) == 1 else "The number of items is given for each measure.")
    return " ".join(parts)


def _markdown(sections: list[Section], plot: str | None) -> str:
    """The Markdown page. Differences and spreads have their own rows, so that columns stay narrow in the raw text."""
    lines = ["# Evaluation", ""]
    if systems := overview(sections):
        table = [_md_head(systems[0]), *(row for group in systems for row in _md_rows(group))]
        lines += ["## Overview", "", *_aligned(table), "", _overview_caption(systems), ""]
    for section, (title, details) in zip(sections, _headings(sections), strict=True):
        table = [_md_head(section), *_md_rows(section), ["items", *map(_items, section.columns)]]
        lines += [f"## {_md(title)}: {_md(details)}", "", *_aligned(table), "", _caption(section, _md), ""]
    if plot is not None:
        lines += ["## Sweep", "", f"![{_PLOT}]({quote(plot)})", ""]
    return "\n".join(lines)


def _md_head(group: Comparison) -> list[str]:
    return ["", *(_md(column.name) for column in group.columns)]


def _md_rows(group: Comparison) -> list[list[str]]:
    names = [column.name for column in group.columns]
    table: list[list[str]] = []
    for row in group.rows:
        cells = [row.cells.get(name) for name in names]
        mark = " (baseline)" if row.label == group.baseline else ""
        figures = [cell and f"{_percent(cell.estimate.mean)} {_interval(cell.estimate)}" for cell in cells]
        table.append([_md(row.label) + mark, *(figure or "" for figure in figures)])
        differences = [_md_difference(cell.difference if cell else None) for cell in cells]
        spreads = [_spread(cell) if cell else "" for cell in cells]
        table += [[told, *some] for told, some in (("↳ difference", differences), ("↳ spread", spreads)) if any(some)]
    for name, figures in group.references.items():
        table.append([_md(name), *(_percent(figures[column]) if column in figures else "" for column in names)])
    return table


def _md_difference(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    mark = "**" if _is_significant(difference) else ""
    return f"{mark}{_percent(difference.mean, '+')} {_interval(difference, '+')}{mark}"


def _aligned(table: list[list[str]]) -> list[str]:
    """The lines of an aligned Markdown table, from its head and rows; numbers are right-aligned."""
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [f"| {' | '.join([label.ljust(first), *map(str.rjust, cells, others)])} |" for label, *cells in table]
    rule = " | ".join(["-" * first, *("-" * (width - 1) + ":" for width in others)])
    return [lines[0], f"| {rule} |", *lines[1:]]


def _md(text: str) -> str:
    """Escapes a text for Markdown; underscores inside words need no escape and stay readable."""
    marked = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _html(sections: list[Section], png: bytes | None) -> str:
    """The HTML page; the template escapes all values."""
    parts: list[dict[str, object]] = [
        {"title": title, "details": details, "groups": [section], "caption": _caption(section)}
        for section, (title, details) in zip(sections, _headings(sections), strict=True)
    ]
    if systems := overview(sections):
        caption = _overview_caption(systems)
        parts.insert(0, {"title": "Overview", "details": "", "groups": systems, "caption": caption})
    environment = Environment(
        loader=PackageLoader("dialog_eval.tables", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    formats = {"percent": _percent, "interval": _interval, "items": _items, "spread": _spread}
    return environment.get_template("table.html.jinja").render(
        parts=parts,
        plot=None if png is None else base64.b64encode(png).decode(),
        plot_text=_PLOT,
        is_significant=_is_significant,
        **formats,
    )
