"""The plot of a sweep: what each share of the baseline in a blend gains and costs."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dialog_eval.report.plotting import STYLES, Plot, draw_line, measures
from dialog_eval.report.pooling import Estimate, Row, Section
from dialog_gen.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Line = tuple[str, str]
"""Label of the tuned checkpoint, kind of blend"""
_Points = dict[float, Estimate]
"""beta -> estimate"""


def sweep_plot(sections: Sequence[Section]) -> bytes:
    """A PNG: a panel a measure, x the share of the baseline, a line for each checkpoint and kind of blend.

    Bands are the intervals. Lines end in the baseline (beta 1) and in the checkpoint alone (beta 0), the entry that
    the blend's label starts with: "DRAFT" for "DRAFT, weight blend 0.9".

    Raises UsageError where no entry is a blend, MissingExtraError where matplotlib is not installed.
    """
    panels = [
        (section, name, lines) for section in sections for name in measures(section) if (lines := _lines(section, name))
    ]
    if not panels:
        raise UsageError("No sweep in these files: no entry is a blend. Name a results.json of `dialog-eval sweep`.")
    plot = Plot(len(panels))
    drawn = dict.fromkeys(line for _, _, lines in panels for line in lines)
    styles = dict(zip(drawn, itertools.cycle(STYLES), strict=False))
    one_stem = len({stem for stem, _ in drawn}) == 1
    legend: dict[str, Any] = {}
    for axes, (section, name, lines) in zip(plot.panels, panels, strict=True):
        for (stem, kind), points in lines.items():
            told = f"{kind} blend" if one_stem else f"{stem}, {kind} blend"
            legend.setdefault(told, draw_line(axes, points, *styles[stem, kind]))
        for row in section.rows:
            if name in row.cells and row.label == section.baseline:
                legend[f"{row.label} (β = 1)"] = _draw_end(axes, 1, row.cells[name].estimate, "*", 14)
            elif name in row.cells and row.label in {stem for stem, _ in lines}:
                legend["tuned alone (β = 0)"] = _draw_end(axes, 0, row.cells[name].estimate, "D", 8)
        plot.describe(axes, section, name)
        axes.set_xlabel("β, share of the baseline")
        axes.set_xlim(-0.04, 1.04)
    return plot.png(legend)


def _stem(row: Row) -> str:
    """The label of the checkpoint in a blend: "DRAFT" of "DRAFT, weight blend 0.9"."""
    return row.label.partition(f", {row.blend} blend")[0]


def _lines(section: Section, name: str) -> dict[_Line, _Points]:
    """The blends that were measured, with the baseline and the checkpoint alone at their ends."""
    alone = {row.label: row.cells[name].estimate for row in section.rows if row.blend is None and name in row.cells}
    lines: dict[_Line, _Points] = {}
    for row in section.rows:
        if row.blend is not None and row.beta is not None and name in row.cells:
            lines.setdefault((_stem(row), row.blend), {})[row.beta] = row.cells[name].estimate
    for (stem, _), points in lines.items():
        for beta, label in ((1.0, section.baseline), (0.0, stem)):
            if label in alone:
                points.setdefault(beta, alone[label])
    return lines


def _draw_end(axes: "Axes", beta: float, estimate: Estimate, marker: str, size: int) -> Any:
    return axes.plot(
        [beta],
        [100 * estimate.mean],
        linestyle="none",
        marker=marker,
        markersize=size,
        markerfacecolor="white",
        markeredgecolor="black",
        zorder=5,
    )[0]
