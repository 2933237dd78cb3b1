"""The forest plot: the paired differences of the headline measures, with their intervals, on one axis.

The HTML page draws it as SVG (`table.html.jinja`), and `forest_plot` as a PNG. Colours are of Okabe and Ito's palette
for colour-blind readers; the markers point to where the difference is, so it can be read in grey.
"""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from dialog_eval.tables.findings import Kind, is_model, measures
from dialog_eval.tables.pooling import Estimate, Section
from dialog_eval.tasks.base import presentation_of
from dialog_gen.core.errors import MissingExtraError, UsageError

COLOURS: dict[Kind, str] = {"gain": "#0072B2", "loss": "#D55E00", "unsure": "#767676", "none": "#767676"}
_MARKERS: dict[Kind, str] = {"gain": ">", "loss": "<", "unsure": "d", "none": "o"}
LEGEND: dict[Kind, str] = {
    "gain": "gain",
    "loss": "loss",
    "unsure": "not sure among all differences of the page",
    "none": "no difference can be seen",
}
_TICKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The difference of one model in one measure."""

    label: str
    kind: Kind
    difference: Estimate
    figure: str
    """Such as "+6.2 [+4.9, +7.5]" """


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The differences in one measure."""

    title: str
    baseline: str
    bars: list[Bar]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """All panels, with their common axis in percentage points."""

    panels: list[Panel]
    ticks: list[float]
    """Round numbers from the lower to the upper end of the axis; 0 is one of them"""

    def place(self, share: float) -> float:
        """The place of a difference (-1 to 1) on the axis, from 0 to 100."""
        low, high = self.ticks[0], self.ticks[-1]
        return round(min(100.0, max(0.0, 100 * (100 * share - low) / (high - low))), 3)

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of differences that occur."""
        there = {bar.kind for panel in self.panels for bar in panel.bars}
        return [kind for kind in LEGEND if kind in there]

    @property
    def several_baselines(self) -> bool:
        """Whether panels have different baselines, so that each names its own."""
        return len({panel.baseline for panel in self.panels}) > 1


def forest(sections: Sequence[Section]) -> Forest | None:
    """The forest of the headline measures that are shares; None if nothing is compared in them.

    Blends are left out unless nothing else is compared: their plot is the sweep's.
    """
    return _forest(sections, blends=False) or _forest(sections, blends=True)


def _forest(sections: Sequence[Section], *, blends: bool) -> Forest | None:
    panels: list[Panel] = []
    for baseline in dict.fromkeys(section.baseline for section in sections if section.baseline is not None):
        for measure in measures(sections, baseline):
            if not presentation_of(measure.section.task).percent:
                continue
            cells = [
                (row.label, row.cells[measure.column])
                for row in measure.section.rows
                if is_model(row, baseline) and (row.blend is None or blends) and measure.column in row.cells
            ]
            bars = [
                Bar(label=label, kind=measure.kind(cell), difference=cell.difference, figure=measure.figure(cell))
                for label, cell in cells
                if cell.difference is not None
            ]
            if bars:
                panels.append(Panel(title=measure.name, baseline=baseline, bars=bars))
    if not panels:
        return None
    ends = [end for panel in panels for bar in panel.bars for end in (bar.difference.low, bar.difference.high)]
    return Forest(panels=panels, ticks=_ticks(100 * min(0, *ends), 100 * max(0, *ends)))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around `low` and `high`, evenly spaced, with 0 among them."""
    rough = max(high - low, 1.0) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 6) for number in range(min(first, -1), max(last, 1) + 1)]


def forest_plot(sections: Sequence[Section]) -> bytes:
    """Draws the forest as a PNG.

    Raises UsageError if nothing is compared, MissingExtraError if matplotlib is not installed.
    """
    drawn = forest(sections)
    if drawn is None:
        raise UsageError(
            "Nothing to plot: these files compare no model with a baseline, and none is a blend. Leave out the plot, "
            "or evaluate with --baseline."
        )
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.lines import Line2D
    except ImportError:
        raise MissingExtraError("the plot of the differences", "eval") from None
    lines = sum(1.4 + len(panel.bars) for panel in drawn.panels)
    figure = Figure(figsize=(8.6, 0.9 + 0.27 * lines), dpi=160, layout=ConstrainedLayoutEngine())
    axes = figure.subplots()
    place, names, places = 0.0, list[str](), list[float]()
    for panel in drawn.panels:
        heading = f"{panel.title}, against {panel.baseline}" if drawn.several_baselines else panel.title
        place += 0.4
        axes.text(
            -0.01, place, _shortened(heading, 44), transform=axes.get_yaxis_transform(), ha="right", va="center",
            fontweight="bold", fontsize=9, parse_math=False,
        )  # fmt: skip
        place += 1
        for bar in panel.bars:
            low, mean, high = (100 * value for value in (bar.difference.low, bar.difference.mean, bar.difference.high))
            colour, hollow = COLOURS[bar.kind], bar.kind in ("none", "unsure")
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(
                [mean], [place], marker=_MARKERS[bar.kind], markersize=7.5, color=colour, linestyle="none",
                markerfacecolor="white" if hollow else colour, markeredgewidth=1.4,
            )  # fmt: skip
            axes.text(
                1.01, place, bar.figure, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5,
                fontweight="normal" if hollow else "bold",
            )  # fmt: skip
            names.append(_shortened(bar.label, 40))
            places.append(place)
            place += 1
    axes.axvline(0, color="black", linewidth=1, zorder=0.9)
    axes.set_yticks(places, names, fontsize=9, parse_math=False)
    axes.set_ylim(place - 0.3, -0.4)
    axes.set_xticks(drawn.ticks, [_tick(tick) for tick in drawn.ticks])
    axes.set_xlim(drawn.ticks[0], drawn.ticks[-1])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    against = "the baseline" if drawn.several_baselines else drawn.panels[0].baseline
    axes.set_xlabel(
        f"Difference to {_shortened(against, 40)} in percentage points, with 95 % interval", parse_math=False
    )
    handles = [
        Line2D([], [], color=COLOURS[kind], marker=_MARKERS[kind], linewidth=2.2, label=LEGEND[kind],
               markerfacecolor="white" if kind in ("none", "unsure") else COLOURS[kind])
        for kind in drawn.kinds
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
    png = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are shown as boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(png, format="png")
    return png.getvalue()


def _tick(value: float) -> str:
    return f"{value:+g}" if value else "0"


def _shortened(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
