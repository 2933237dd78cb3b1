"""Plots of results: measures over the baseline's share in a sweep, or over the noise in text-only training.

Both have one panel per measure, with lines and 95 % bands, and one legend below.
"""

import io
import itertools
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dialog_eval.tables.pooling import Estimate, Row, Section
from dialog_eval.tasks.base import presentation_of
from dialog_gen.core.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Line = tuple[str, str]
"""Label of the tuned checkpoint, kind of blend"""
_Points = dict[float, Estimate]
"""Value on the x axis -> estimate"""

# Okabe and Ito's palette, suitable for colour-blind readers; the markers distinguish lines in greyscale.
_STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X")]
_PANELS_PER_ROW = 3

# Maps the part after a label's last comma, if it names a decoder's input, to its name in the legend.
_CONTEXTS = {"": "images", "blind": "blind: the mean image", "from captions": "captions"}


def sweep_plot(sections: Sequence[Section]) -> bytes:
    """Draws a sweep as a PNG.

    There is one panel per measure and one line per checkpoint and kind of blend; x is the share of the baseline. Lines
    end in the baseline (beta 1) and in the checkpoint alone (beta 0): the entry whose label the blend's label starts
    with, such as "DRAFT" for "DRAFT, weight blend 0.9".

    Raises UsageError if no entry is a blend, MissingExtraError if matplotlib is not installed.
    """
    panels = [
        (section, name, lines)
        for section in sections
        for name in _measures(section)
        if (lines := _blend_lines(section, name))
    ]
    if not panels:
        raise UsageError("No sweep in these files: no entry is a blend. Name a results.json of `dialog-eval sweep`.")
    plot = _Plot(len(panels))
    drawn = dict.fromkeys(line for _, _, lines in panels for line in lines)
    styles = dict(zip(drawn, itertools.cycle(_STYLES), strict=False))
    one_stem = len({stem for stem, _ in drawn}) == 1
    legend: dict[str, Any] = {}
    for axes, (section, name, lines) in zip(plot.panels, panels, strict=True):
        for (stem, kind), points in lines.items():
            told = f"{kind} blend" if one_stem else f"{stem}, {kind} blend"
            legend.setdefault(told, _draw_line(axes, points, *styles[stem, kind]))
        for row in section.rows:
            if name in row.cells and row.label == section.baseline:
                legend[f"{row.label} (β = 1)"] = _draw_end(axes, 1, row.cells[name].estimate, "*", 14)
            elif name in row.cells and row.label in {stem for stem, _ in lines}:
                legend["tuned alone (β = 0)"] = _draw_end(axes, 0, row.cells[name].estimate, "D", 8)
        plot.describe(axes, section, name)
        axes.set_xlabel("β, share of the baseline")
        axes.set_xlim(-0.04, 1.04)
    return plot.png(legend)


def noise_plot(sections: Sequence[Section]) -> bytes:
    """Draws a noise sweep as a PNG (CLOSE, arXiv 2211.09778).

    There is one panel per measure and one line per kind of vector that the decoder read; x is the noise in training.
    All rows with a noise belong to one sweep, regardless of their labels; of two with the same noise, the later one is
    shown.

    Raises ValueError if no row has a noise, MissingExtraError if matplotlib is not installed.
    """
    panels = [
        (section, name, lines)
        for section in sections
        for name in _measures(section)
        if (lines := _noise_lines(section, name))
    ]
    if not panels:
        raise ValueError("no row has a noise")
    plot = _Plot(len(panels))
    legend: dict[str, Any] = {}
    for axes, (section, name, lines) in zip(plot.panels, panels, strict=True):
        for (suffix, told), style in zip(_CONTEXTS.items(), _STYLES, strict=False):
            if suffix in lines:
                legend.setdefault(told, _draw_line(axes, lines[suffix], *style))
        plot.describe(axes, section, name)
        axes.set_xlabel("w, noise on text vectors in training")
    return plot.png(legend)


def _measures(section: Section) -> list[str]:
    """The measures to plot: the task's headlines, or its first measure if it has none of them."""
    known = [column.name for column in section.columns]
    return [name for name in presentation_of(section.task).headlines if name in known] or known[:1]


def _stem(row: Row) -> str:
    """The label of the checkpoint in a blend: "DRAFT" of "DRAFT, weight blend 0.9"."""
    return row.label.partition(f", {row.blend} blend")[0]


def _blend_lines(section: Section, name: str) -> dict[_Line, _Points]:
    """The points of all measured blends, with the baseline and the checkpoint alone at the ends of each line."""
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


def _noise_lines(section: Section, name: str) -> dict[str, dict[float, Estimate]]:
    """The points of the lines: key of `_CONTEXTS` -> noise -> estimate."""
    lines: dict[str, dict[float, Estimate]] = {}
    for row in section.rows:
        if row.noise is not None and name in row.cells:
            suffix = row.label.rpartition(", ")[2]
            kind = suffix if suffix in _CONTEXTS else ""
            lines.setdefault(kind, {})[row.noise] = row.cells[name].estimate
    return lines


class _Plot:
    """An empty figure with a grid of panels."""

    def __init__(self, panels: int) -> None:
        """Raises MissingExtraError if matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
            from matplotlib.layout_engine import ConstrainedLayoutEngine
        except ImportError:
            raise MissingExtraError("the plot of a sweep", "eval") from None
        across = min(panels, _PANELS_PER_ROW)
        down = -(-panels // across)
        self._width = max(4.2 * across, 5.5)
        layout = ConstrainedLayoutEngine(w_pad=0.12)
        self._figure = Figure(figsize=(self._width, 3.6 * down + 0.8), dpi=160, layout=layout)
        grid: list[Axes] = list(self._figure.subplots(down, across, squeeze=False).flat)
        self.panels = grid[:panels]
        for axes in grid[panels:]:
            axes.remove()

    def describe(self, axes: "Axes", section: Section, name: str) -> None:
        """Sets the title of a panel to dataset and protocol, and the label of its y axis to the measure."""
        where = "\n".join(textwrap.wrap(f"{section.dataset}, {section.protocol}", 52))
        axes.set_title(where, fontsize=8, color="#555555", loc="left", pad=10, parse_math=False)
        axes.set_ylabel(f"{presentation_of(section.task).short_title} {name} (%)".lstrip(), parse_math=False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    def png(self, legend: Mapping[str, Any]) -> bytes:
        """Renders the figure as PNG. `legend`: label -> the drawn object that it describes."""
        labels = [textwrap.fill(label, 56) for label in legend]
        # Estimated in inches: a letter is 0.09 wide, the line before a label 0.7.
        most = int(self._width / (0.7 + 0.09 * max(len(line) for label in labels for line in label.splitlines())))
        shown = self._figure.legend(
            legend.values(), labels, loc="outside lower center", ncols=max(1, most), frameon=False
        )
        for text in shown.get_texts():
            text.set_parse_math(False)
        png = io.BytesIO()
        with warnings.catch_warnings():
            # Characters that the font lacks are shown as boxes; that is no reason to fail.
            warnings.filterwarnings("ignore", message="Glyph")
            self._figure.savefig(png, format="png")
        return png.getvalue()


def _draw_line(axes: "Axes", points: Mapping[float, Estimate], colour: str, marker: str) -> Any:
    """Draws the points as a line with a band."""
    places = sorted(points)
    low, mean, high = ([100 * getattr(points[x], part) for x in places] for part in ("low", "mean", "high"))
    axes.fill_between(places, low, high, facecolor=colour, alpha=0.12, linewidth=0)
    # Edges distinguish bands that overlap.
    for edge in (low, high):
        axes.plot(places, edge, color=colour, alpha=0.5, linewidth=0.7)
    return axes.plot(places, mean, color=colour, marker=marker, markersize=5, linewidth=1.8)[0]


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
