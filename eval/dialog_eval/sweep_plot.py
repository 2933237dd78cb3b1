"""The plot of a sweep: what each share of the baseline in a blend gains and costs."""

import io
import itertools
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dialog_eval.pooling import Estimate, Row, Section
from dialog_gen.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The measures that tell most; a section without them shows its first.
_MEASURES = {"vqa": ("accuracy",), "retrieval": ("image R@1", "text R@1")}
# Okabe and Ito's colours, safe for the colour-blind; markers tell the lines apart in grey.
_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X")]
_PANELS_A_ROW = 3

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
        (section, name, lines) for section in sections for name in _names(section) if (lines := _lines(section, name))
    ]
    if not panels:
        raise UsageError("No sweep in these files: no entry is a blend. Name a results.json of `dialog-eval sweep`.")
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise MissingExtraError("the plot of a sweep", "eval") from None

    across = min(len(panels), _PANELS_A_ROW)
    down = -(-len(panels) // across)
    width = max(4.2 * across, 5.5)
    figure = Figure(figsize=(width, 3.6 * down + 0.8), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.12))
    grid: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    drawn = dict.fromkeys(line for _, _, lines in panels for line in lines)
    styles = dict(zip(drawn, itertools.cycle(_STYLES), strict=False))
    one_stem = len({stem for stem, _ in drawn}) == 1
    legend: dict[str, Any] = {}
    for axes, (section, name, lines) in zip(grid, panels, strict=False):
        for (stem, kind), points in lines.items():
            told = f"{kind} blend" if one_stem else f"{stem}, {kind} blend"
            legend.setdefault(told, _draw_line(axes, points, *styles[stem, kind]))
        for row in section.rows:
            if name in row.cells and row.label == section.baseline:
                legend[f"{row.label} (β = 1)"] = _draw_end(axes, 1, row.cells[name].estimate, "*", 14)
            elif name in row.cells and row.label in {stem for stem, _ in lines}:
                legend["tuned alone (β = 0)"] = _draw_end(axes, 0, row.cells[name].estimate, "D", 8)
        _describe(axes, section, name)
    for axes in grid[len(panels) :]:
        axes.remove()
    labels = [textwrap.fill(label, 56) for label in legend]
    # In inches, about: a letter 0.09, the line before the label 0.7.
    most = int(width / (0.7 + 0.09 * max(len(line) for label in labels for line in label.splitlines())))
    shown = figure.legend(legend.values(), labels, loc="outside lower center", ncols=max(1, most), frameon=False)
    for text in shown.get_texts():
        text.set_parse_math(False)
    png = io.BytesIO()
    with warnings.catch_warnings():
        # A label in a script that the font lacks shows as boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(png, format="png")
    return png.getvalue()


def _names(section: Section) -> list[str]:
    """The measures to plot."""
    known = [column.name for column in section.columns]
    return [name for name in _MEASURES.get(section.task, ()) if name in known] or known[:1]


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


def _draw_line(axes: "Axes", points: _Points, colour: str, marker: str) -> Any:
    betas = sorted(points)
    low, mean, high = ([100 * getattr(points[beta], part) for beta in betas] for part in ("low", "mean", "high"))
    axes.fill_between(betas, low, high, facecolor=colour, alpha=0.12, linewidth=0)
    # Bands that lie on each other are told apart by their edges.
    for edge in (low, high):
        axes.plot(betas, edge, color=colour, alpha=0.5, linewidth=0.7)
    return axes.plot(betas, mean, color=colour, marker=marker, markersize=5, linewidth=1.8)[0]


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


def _describe(axes: "Axes", section: Section, name: str) -> None:
    where = "\n".join(textwrap.wrap(f"{section.dataset}, {section.protocol}", 52))
    axes.set_title(where, fontsize=8, color="#555555", loc="left", pad=10, parse_math=False)
    axes.set_xlabel("β, share of the baseline")
    axes.set_ylabel(f"{'VQA ' if section.task == 'vqa' else ''}{name} (%)", parse_math=False)
    axes.set_xlim(-0.04, 1.04)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
