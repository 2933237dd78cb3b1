"""What the differences of a page say: for each headline measure and model a gain, a loss, or nothing to be seen."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dialog_eval.tables.pooling import BLIND, Cell, Comparison, Estimate, Row, Section
from dialog_eval.tasks.base import presentation_of

Kind = Literal["gain", "loss", "unsure", "none"]
"""unsure: the interval excludes 0, but among all differences of the page such a one is no surprise"""

CONTROLS = (BLIND, ", from captions")
"""Ends of the labels of control runs, in which a model does not see the image itself."""

_DIGITS = re.compile(r" [0-9a-f]{12}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A headline measure of a section."""

    name: str
    """Tells it from the other headline measures of the page, such as "VQA accuracy (asked by statement)"."""
    column: str
    section: Section

    def number(self, value: float, sign: str = "") -> str:
        """A value as it is shown: shares in percent."""
        return presentation_of(self.section.task).number(value, sign)

    def kind(self, cell: Cell) -> Kind:
        """What the difference is; "none" if its interval, as printed, contains 0."""
        if cell.difference is None or touches_zero(self.section.task, cell.difference):
            return "none"
        if not cell.holds:
            return "unsure"
        return "gain" if cell.difference.mean > 0 else "loss"

    def figure(self, cell: Cell) -> str:
        """The difference and its interval, such as "+6.2 [+4.9, +7.5]"."""
        told = cell.difference or cell.estimate
        sign = "+" if cell.difference else ""
        return f"{self.number(told.mean, sign)} [{self.number(told.low, sign)}, {self.number(told.high, sign)}]"

    def size(self, cell: Cell) -> str:
        """How large a gain or a loss is, without a sign, such as "6.2 points [4.9, 7.5]" of -6.2 [-7.5, -4.9]."""
        told = cell.difference or cell.estimate
        low, high = sorted((abs(told.low), abs(told.high)))
        unit = " points" if presentation_of(self.section.task).percent else ""
        return f"{self.number(abs(told.mean))}{unit} [{self.number(low)}, {self.number(high)}]"

    def unseeing(self, cell: Cell) -> dict[str, float | None]:
        """See `unseeing`."""
        return unseeing(self.section, self.column, cell)


def unseeing(group: Comparison, column: str, cell: Cell) -> dict[str, float | None]:
    """Ways to answer without the image that a figure is not shown to be above -> their value.

    A reference counts if the interval of the figure reaches down to it; the same model blind if the interval of the
    paired difference to it reaches down to 0, and its value is None.
    """
    found: dict[str, float | None] = {
        name: figures[column]
        for name, figures in group.references.items()
        if column in figures and cell.estimate.low <= figures[column]
    }
    if cell.sight is not None and cell.sight.low <= 0:
        found["the model blind"] = None
    return found


def touches_zero(task: str, difference: Estimate) -> bool:
    """Whether the interval of a difference, as printed, contains 0: [+0.0, +0.7] does."""
    rounded = presentation_of(task).rounded
    return rounded(difference.low) <= 0 <= rounded(difference.high)


def measures(sections: Sequence[Section], baseline: str | None) -> list[Measure]:
    """The headline measures of the sections with that baseline, or with none if a baseline was not measured there."""
    found = [
        (section, column.name)
        for section in sections
        if section.baseline == baseline
        for column in section.columns
        if column.items and column.name in presentation_of(section.task).headlines
    ]
    stems = [_stem(section, column) for section, column in found]
    alike: dict[str, list[Section]] = {}
    for (section, _), stem in zip(found, stems, strict=True):
        alike.setdefault(stem, []).append(section)
    return [
        Measure(name=f"{stem}{_apart(section, alike[stem])}", column=column, section=section)
        for (section, column), stem in zip(found, stems, strict=True)
    ]


def models(sections: Sequence[Section], baseline: str | None) -> list[str]:
    """The labels that are compared with the baseline, without blends and control runs."""
    rows = [row for section in sections if section.baseline == baseline for row in section.rows]
    return list(dict.fromkeys(row.label for row in rows if row.blend is None and is_model(row, baseline)))


def is_model(row: Row, baseline: str | None) -> bool:
    """Whether the row is neither a control run nor the baseline."""
    return row.label != baseline and not row.label.endswith(CONTROLS)


def _stem(section: Section, column: str) -> str:
    """A name such as "VQA accuracy"; a headline that is only the protocol, such as "SugarCrepe", is kept."""
    shown = presentation_of(section.task)
    headline = shown.headlines[column]
    if headline.startswith("{protocol}"):
        return headline.format(protocol=section.protocol)
    return f"{shown.short_title} {column}".lstrip()


def _apart(section: Section, alike: Sequence[Section]) -> str:
    """In brackets the parts of dataset and protocol that not all sections with the same measure have."""
    times = Counter(part for other in alike for part in set(_parts(other)))
    parts = [_DIGITS.sub("", part) for part in _parts(section) if times[part] < len(alike)]
    return f" ({', '.join(parts)})" if parts else ""


def _parts(section: Section) -> list[str]:
    return [section.dataset, *section.protocol.split(", ")]
