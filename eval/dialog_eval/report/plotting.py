"""How plots of measures look: panels side by side, lines with bands, one legend below."""

import io
import textwrap
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dialog_eval.report.pooling import Estimate, Section
from dialog_gen.core.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, safe for the colour-blind; markers tell the lines apart in grey.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X")]

# The measures that tell most; a section without them shows its first.
_MEASURES = {"vqa": ("accuracy",), "retrieval": ("image R@1", "text R@1")}
_PANELS_A_ROW = 3


def measures(section: Section) -> list[str]:
    """The measures to plot."""
    known = [column.name for column in section.columns]
    return [name for name in _MEASURES.get(section.task, ()) if name in known] or known[:1]


class Plot:
    """An empty figure with some panels."""

    def __init__(self, panels: int) -> None:
        """Raises MissingExtraError where matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
            from matplotlib.layout_engine import ConstrainedLayoutEngine
        except ImportError:
            raise MissingExtraError("the plot of a sweep", "eval") from None
        across = min(panels, _PANELS_A_ROW)
        down = -(-panels // across)
        self._width = max(4.2 * across, 5.5)
        layout = ConstrainedLayoutEngine(w_pad=0.12)
        self._figure = Figure(figsize=(self._width, 3.6 * down + 0.8), dpi=160, layout=layout)
        grid: list[Axes] = list(self._figure.subplots(down, across, squeeze=False).flat)
        self.panels = grid[:panels]
        for axes in grid[panels:]:
            axes.remove()

    def describe(self, axes: "Axes", section: Section, name: str) -> None:
        """Says in a panel what it shows."""
        where = "\n".join(textwrap.wrap(f"{section.dataset}, {section.protocol}", 52))
        axes.set_title(where, fontsize=8, color="#555555", loc="left", pad=10, parse_math=False)
        axes.set_ylabel(f"{'VQA ' if section.task == 'vqa' else ''}{name} (%)", parse_math=False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    def png(self, legend: Mapping[str, Any]) -> bytes:
        """The picture, with a legend of what was drawn by its label."""
        labels = [textwrap.fill(label, 56) for label in legend]
        # In inches, about: a letter 0.09, the line before the label 0.7.
        most = int(self._width / (0.7 + 0.09 * max(len(line) for label in labels for line in label.splitlines())))
        shown = self._figure.legend(
            legend.values(), labels, loc="outside lower center", ncols=max(1, most), frameon=False
        )
        for text in shown.get_texts():
            text.set_parse_math(False)
        png = io.BytesIO()
        with warnings.catch_warnings():
            # A label in a script that the font lacks shows as boxes; that is no reason to fail.
            warnings.filterwarnings("ignore", message="Glyph")
            self._figure.savefig(png, format="png")
        return png.getvalue()


def draw_line(axes: "Axes", points: Mapping[float, Estimate], colour: str, marker: str) -> Any:
    """Draws x -> estimate as a line with its band."""
    places = sorted(points)
    low, mean, high = ([100 * getattr(points[x], part) for x in places] for part in ("low", "mean", "high"))
    axes.fill_between(places, low, high, facecolor=colour, alpha=0.12, linewidth=0)
    # Bands that lie on each other are told apart by their edges.
    for edge in (low, high):
        axes.plot(places, edge, color=colour, alpha=0.5, linewidth=0.7)
    return axes.plot(places, mean, color=colour, marker=marker, markersize=5, linewidth=1.8)[0]
