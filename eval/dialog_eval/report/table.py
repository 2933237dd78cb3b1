"""`dialog-eval table`: several results.json in one Markdown or HTML table, with a plot of the sweep."""

import base64
import os
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from dialog_eval.report.noise_plot import noise_plot
from dialog_eval.report.overview import overview
from dialog_eval.report.pooling import Cell, Column, Comparison, Estimate, Section, pool
from dialog_eval.report.sweep_plot import sweep_plot
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_file

_TASKS = {
    "retrieval": "Retrieval",
    "vqa": "Visual question answering",
    "classification": "Zero-shot classification",
    "captioning": "Captioning",
    "entailment": "Entailment",
}
_PLOT = "Measures over the share of the baseline in blends, or over the noise of a training, with 95 % intervals"


def write_table(files: list[Path], out: Path, plot: Path | None = None) -> None:
    """Writes the table of these results.json to `out` (.md or .html), and the plot of their sweep to `plot` (.png).

    A section a task, dataset, protocol and baseline, a row a label, a column a measure; before them an overview, where
    there are several tasks. The HTML is one file with the plot in it; the Markdown links the plot. Files of these
    names are replaced when all is computed.

    Raises UsageError for other suffixes, where nothing can be written, and as `pool` and `sweep_plot` do.
    """
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
        # Relative, so that the two can be moved, committed or shared together.
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


def _stands_out(difference: Estimate) -> bool:
    """The interval as printed does not touch 0: a reader never sees [+0.0, +0.7] marked."""
    return round(100 * difference.low, 1) > 0 or round(100 * difference.high, 1) < 0


def _spread(cell: Cell) -> str:
    return "" if cell.spread is None else f"± {_percent(cell.spread)} (n = {cell.repetitions})"


def _items(column: Column) -> str:
    images = "" if column.images is None else f", {column.images:,} images"
    return f"{column.items:,} items{images}" if column.items else ""


def _headings(sections: list[Section], text: Callable[[str], str], form: str) -> list[str]:
    """Each section's; a baseline is named where another one has such a section. Labels go through `text`."""
    keys = [(section.task, section.dataset, section.protocol) for section in sections]
    return [
        form.format(
            _TASKS[section.task],
            text(section.dataset),
            text(section.protocol)
            + (f", against {text(section.baseline)}" if section.baseline and keys.count(key) > 1 else ""),
        )
        for section, key in zip(sections, keys, strict=True)
    ]


def _overview_caption(systems: list[Comparison]) -> str:
    """What the figures are."""
    differences = (
        "Below: paired differences to the nearest baseline above, bold where their interval does not touch 0. "
        if any(some.baseline for some in systems)
        else ""
    )
    return (
        f"In percent, in brackets 95 % bootstrap intervals. {differences}More measures, and on how many items, follow."
    )


def _caption(section: Section, text: Callable[[str], str]) -> str:
    """What the figures are; labels go through `text`, which escapes them."""
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
    """Rows of a label follow each other, so that the columns stay narrow enough to be read raw."""
    lines = ["# Evaluation", ""]
    if systems := overview(sections):
        table = [_md_head(systems[0]), *(row for group in systems for row in _md_rows(group))]
        lines += ["## Overview", "", *_aligned(table), "", _overview_caption(systems), ""]
    for section, heading in zip(sections, _headings(sections, _md, "## {}: {}, {}"), strict=True):
        table = [_md_head(section), *_md_rows(section), ["items", *map(_items, section.columns)]]
        lines += [heading, "", *_aligned(table), "", _caption(section, _md), ""]
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
    mark = "**" if _stands_out(difference) else ""
    return f"{mark}{_percent(difference.mean, '+')} {_interval(difference, '+')}{mark}"


def _aligned(table: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, from its head and rows; figures stand on the right."""
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [f"| {' | '.join([label.ljust(first), *map(str.rjust, cells, others)])} |" for label, *cells in table]
    rule = " | ".join(["-" * first, *("-" * (width - 1) + ":" for width in others)])
    return [lines[0], f"| {rule} |", *lines[1:]]


def _md(text: str) -> str:
    """Text as it is shown, whatever it holds; underscores inside words mean nothing and stay readable."""
    marked = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _html(sections: list[Section], png: bytes | None) -> str:
    told = _headings(sections, escape, "{} <small>{}, {}</small>")
    parts = [
        _html_section(heading, [section], _caption(section, escape))
        for heading, section in zip(told, sections, strict=True)
    ]
    if systems := overview(sections):
        parts.insert(0, _html_section("Overview", systems, _overview_caption(systems)))
    body = "\n".join(parts)
    if png is not None:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        body += f'\n<h2>Sweep</h2>\n<figure><img src="{source}" alt="{escape(_PLOT)}"></figure>'
    return _PAGE.substitute(body=body)


def _html_section(heading: str, groups: Sequence[Comparison], caption: str) -> str:
    """One table of groups that have the same columns; `heading` and `caption` are HTML."""
    columns = groups[0].columns
    head = "".join(f'<th scope="col">{escape(column.name)}<small>{_items(column)}</small></th>' for column in columns)
    rows: list[str] = []
    for group in groups:
        for row in group.rows:
            baseline = "<small>baseline</small>" if row.label == group.baseline else ""
            cells = {name: _html_cell(cell) for name, cell in row.cells.items()}
            rows.append(_html_row(escape(row.label) + baseline, cells, columns))
        for name, figures in group.references.items():
            cells = {measure: f"<div>{_percent(value)}</div>" for measure, value in figures.items()}
            rows.append(_html_row(escape(name), cells, columns))
    return _SECTION.substitute(heading=heading, caption=caption, head=head, rows="\n".join(rows))


def _html_row(label: str, cells: dict[str, str], columns: list[Column]) -> str:
    """`label` and `cells` are HTML."""
    told = (f'<td data-measure="{escape(column.name)}">{cells.get(column.name, "")}</td>' for column in columns)
    return f'<tr><th scope="row">{label}</th>{"".join(told)}</tr>'


def _html_cell(cell: Cell) -> str:
    lines = [f"<span>{_percent(cell.estimate.mean)}</span> <i>{_interval(cell.estimate)}</i>"]
    if cell.difference is not None:
        told = f"<span>{_percent(cell.difference.mean, '+')}</span> <i>{_interval(cell.difference, '+')}</i>"
        lines.append(f"<strong>{told}</strong>" if _stands_out(cell.difference) else told)
    if cell.spread is not None:
        lines.append(f"<span>{_spread(cell)}</span>")
    return "".join(f"<div>{line}</div>" for line in lines)


_SECTION = Template("""\
<section>
<h2>$heading</h2>
<table>
<caption>$caption</caption>
<thead><tr><th></th>$head</tr></thead>
<tbody>
$rows
</tbody>
</table>
</section>""")

# On a narrow screen a row becomes a card, and a cell a line that begins with the measure's name.
_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5c5c5c; --rule: #d4d4d4; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a5a5a5; --rule: #444; --paper: #161616; }
}
body { margin: 2rem auto; max-width: 85rem; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.6em; }
h2 { font-size: 1.2em; margin: 1.7em 0 .5em; }
small { display: block; font-weight: normal; font-size: .87em; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: .6rem; font-size: .87em; color: var(--soft); }
th, td { padding: .45rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 600; min-width: 8rem; }
thead th { vertical-align: bottom; text-wrap: balance; }
span, i { white-space: nowrap; font-style: normal; }
td > div + div { font-size: .87em; color: var(--soft); }
td strong { color: var(--ink); }
/* Six measures fit; on a narrower screen intervals go below their means. */
@media print, (min-width: 66rem) { td > div { white-space: nowrap; } }
figure { margin: 0; overflow-x: auto; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
@media screen and (max-width: 52rem) {
  table, caption, thead, tbody, tr, th, td { display: block; text-align: left; }
  thead th:first-child, td:empty { display: none; }
  th, td { border: 0; padding: .15rem 0; }
  tr { border-bottom: 1px solid var(--rule); padding: .5rem 0; }
  td, thead th { display: grid; grid-template-columns: 2fr 3fr; column-gap: .6rem; }
  td::before { content: attr(data-measure); color: var(--soft); }
  td > div { grid-column: 2; }
  img { max-width: none; width: 60rem; }
}
@media print {
  @page { size: A4 landscape; margin: 1.2cm; }
  :root { --ink: #000; --soft: #444; --rule: #999; --paper: #fff; }
  body { margin: 0; max-width: none; padding: 0; font-size: 9pt; }
  tr, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
<h1>Evaluation</h1>
$body
</body>
</html>
""")
