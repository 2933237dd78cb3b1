"""How figures are written on a page, in Markdown and in HTML: numbers, marks, headings and captions."""

from collections.abc import Callable, Sequence

from dialog_eval.tables.findings import CONTROLS, touches_zero, unseeing
from dialog_eval.tables.pooling import BLIND, Cell, Column, Comparison, Estimate, Row, Section
from dialog_eval.tasks.base import Presentation, presentation_of
from dialog_gen.core.plural import count_of

UNSURE, UNSEEING = "°", "†"
"""Marks of a difference that does not hold among all of the page, and of a figure that needs no image."""

_SHARES = Presentation(task="", title="")
"""How the overview shows its measures, which are all shares."""


def task_of(group: Comparison) -> str:
    """The task of a section; the overview has several and no name."""
    return group.task if isinstance(group, Section) else ""


def shown_as(group: Comparison) -> Presentation:
    """How the measures of a table are shown."""
    return presentation_of(group.task) if isinstance(group, Section) else _SHARES


def interval(estimate: Estimate, shown: Presentation, sign: str = "") -> str:
    """An interval such as "[+4.9, +7.5]"."""
    return f"[{shown.number(estimate.low, sign)}, {shown.number(estimate.high, sign)}]"


def is_held(cell: Cell, group: Comparison) -> bool:
    """Whether the difference is marked as one: its interval, as printed, excludes 0, and it holds on the page."""
    return cell.difference is not None and cell.holds and not touches_zero(task_of(group), cell.difference)


def difference_mark(cell: Cell, group: Comparison) -> str:
    """The mark of a difference whose interval excludes 0 and that does not hold on the page; else nothing."""
    if cell.difference is None or cell.holds or touches_zero(task_of(group), cell.difference):
        return ""
    return UNSURE


def mean_mark(row: Row, column: str, group: Comparison) -> str:
    """The mark of a figure that is not shown to be above an answer without the image; else nothing."""
    sighted = not row.label.endswith(CONTROLS)
    return UNSEEING if sighted and unseeing(group, column, row.cells[column]) else ""


def spread(cell: Cell, shown: Presentation) -> str:
    """The spread over repetitions, such as "± 0.6 (n = 3)"; empty for one repetition."""
    return "" if cell.spread is None else f"± {shown.number(cell.spread)} (n = {cell.repetitions})"


def items(column: Column) -> str:
    """On how many items and images a measure was taken."""
    images = "" if column.images is None else f", {count_of(column.images, 'image', grouped=True)}"
    return f"{count_of(column.items, 'item', grouped=True)}{images}" if column.items else ""


def headings(sections: Sequence[Section]) -> list[tuple[str, str]]:
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


def marks_note(sections: Sequence[Section]) -> str:
    """What bold and marks mean on this page, with the number of differences that are looked at together."""
    rows = [(section, row) for section in sections for row in section.rows]
    cells = [cell for _, row in rows for cell in row.cells.values() if cell.difference is not None]
    told: list[str] = []
    if cells:
        told.append(
            f"Bold: the difference holds at 5 % for other images and seeds when all {len(cells):,} differences of this "
            "page are looked at together (Holm's correction)."
            if len(cells) > 1
            else "Bold: the difference holds at 5 % for other images and seeds."
        )
    if len(cells) > 1 and any(difference_mark(cell, section) for section, row in rows for cell in row.cells.values()):
        told.append(f"{UNSURE}: the interval excludes 0, but the difference does not hold among all of them.")
    if any(mean_mark(row, column, section) for section, row in rows for column in row.cells):
        told.append(f"{UNSEEING}: not shown to be above an answer without the image.")
    return " ".join(told)


def overview_caption(systems: Sequence[Comparison], sections: Sequence[Section]) -> str:
    """The caption of the overview: explains its numbers and its measures."""
    differences = (
        "Below: paired differences to the nearest baseline above. " if any(some.baseline for some in systems) else ""
    )
    begin = f"In percent, in brackets 95 % bootstrap intervals. {differences}"
    meanings = dict.fromkeys(presentation_of(section.task).about for section in sections)
    return " ".join(filter(None, [begin.rstrip(), *meanings, "More measures, and on how many items, follow."]))


def caption(section: Section, text: Callable[[str], str] = str) -> str:
    """The caption of a section's table: explains its numbers."""
    images = any(column.images for column in section.columns)
    percent = shown_as(section).percent
    begin = "In percent, in brackets" if percent else "In brackets"
    parts = [f"{begin} 95 % bootstrap intervals over {'images' if images else 'items'}."]
    if section.baseline is None:
        parts.append("No differences: no baseline was measured here.")
    else:
        parts.append(
            f"Below: paired differences to {text(section.baseline)}{' in percentage points' if percent else ''}, item "
            "by item, with their intervals."
        )
    if any(cell.spread is not None for row in section.rows for cell in row.cells.values()):
        parts.append("±: standard deviation over n repetitions (seeds), of which the figures are the mean.")
    else:
        parts.append("One repetition each.")
    if any(row.label.endswith(BLIND) for row in section.rows):
        parts.append("Blind: with the mean image in every image's place.")
    if section.references:
        parts.append("Rows without intervals need no model.")
    parts += filter(None, [shown_as(section).about])
    counts = {items(column) for column in section.columns if column.items}
    parts.append(f"{counts.pop()}." if len(counts) == 1 else "The number of items is given for each measure.")
    return " ".join(parts)


def note_lines(note: str) -> list[str]:
    """The parts of a note that lists figures, such as "without the image: ...; ...", each a line of its own."""
    first, colon, rest = note.partition(": ")
    if not colon or "; " not in rest:
        return [note]
    return [f"{first}: {part}" for part in rest.split("; ")]
