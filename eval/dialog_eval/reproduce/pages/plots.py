"""The plot of a study: what each arm gives, and curves over the number or the truth of dialogues."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dialog_eval.metrics.significance import Difference
from dialog_gen.core.errors import MissingExtraError

_COLOUR, _UNTUNED = "#0072B2", "#555555"
_ROW_IN, _PANEL_IN = 0.28, 3.0
_LEAST_RANGE = 20
"""Of the y axis of a curve, in points."""
_MARGIN = 0.04
"""Beside the intervals of panels, as a share of the x axis."""
_LEGEND = "Bars and shades: 95 % intervals. Grey, and the dotted lines: the untuned CLIP."


class Panel(NamedTuple):
    """What each model gives by one measure. Panels of the same `kind` have the same x axis."""

    title: str
    kind: str
    estimates: Mapping[str, Difference]
    """Name of a model -> its figure, from 0 to 1; the untuned one first."""


def study_plot(
    panels: Sequence[Panel], curves: Mapping[str, Sequence[tuple[float, Difference]]], measure: str
) -> bytes:
    """Draws a PNG: above, a panel for each measure with a row for each model; below, a panel for each curve.

    `measure`: what the curves show.

    Raises MissingExtraError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("the plot of a study", "eval") from None
    drawn = {name: points for name, points in curves.items() if len(points) > 1}
    models = list(dict.fromkeys(model for panel in panels for model in panel.estimates))
    across, upper = len(panels), _ROW_IN * max(1, len(models)) + 0.9
    figure = Figure(figsize=(_PANEL_IN * across, upper + (2.6 if drawn else 0)), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2 if drawn else 1, 1, height_ratios=[upper, 2.6] if drawn else [1])
    above = grid[0].subgridspec(1, max(1, across)).subplots(squeeze=False)[0]
    for place, (axes, panel) in enumerate(zip(above, panels, strict=False)):
        _rows(axes, panel, models, labelled=place == 0)
        axes.set_xlim(*_limits([one for one in panels if one.kind == panel.kind]))
    if drawn:
        below = grid[1].subgridspec(1, len(drawn)).subplots(squeeze=False)[0]
        for axes, (title, points) in zip(below, drawn.items(), strict=True):
            _curve(axes, title, points, measure)
    figure.supxlabel(_LEGEND, fontsize=8, color=_UNTUNED)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _limits(panels: Sequence[Panel]) -> tuple[float, float]:
    estimates = [estimate for panel in panels for estimate in panel.estimates.values()]
    low, high = 100 * min(one.low for one in estimates), 100 * max(one.high for one in estimates)
    margin = _MARGIN * max(high - low, 1.0)
    return low - margin, high + margin


def _rows(axes: Any, panel: Panel, models: Sequence[str], *, labelled: bool) -> None:
    for place, (model, estimate) in enumerate(panel.estimates.items()):
        mean, low, high = (100 * getattr(estimate, part) for part in ("mean", "low", "high"))
        colour, row = _COLOUR if place else _UNTUNED, models.index(model)
        axes.plot([low, high], [row, row], color=colour, linewidth=1.6)
        axes.plot([mean], [row], "o", color=colour, markersize=5)
        if not place:
            axes.axvline(mean, color=colour, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(models)), models if labelled else [""] * len(models))
    axes.tick_params(axis="y", length=0)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_title(panel.title, fontsize=9, parse_math=False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _curve(axes: Any, title: str, points: Sequence[tuple[float, Difference]], measure: str) -> None:
    x = [value for value, _ in points]
    mean, low, high = ([100 * getattr(one, part) for _, one in points] for part in ("mean", "low", "high"))
    axes.fill_between(x, low, high, color=_COLOUR, alpha=0.15, linewidth=0)
    axes.plot(x, mean, "o-", color=_COLOUR, linewidth=1.6, markersize=5)
    axes.set_xticks(x)
    axes.set_xlabel(title, parse_math=False)
    axes.set_ylabel(measure, fontsize=9, parse_math=False)
    # Small differences must not look large.
    middle, half = (min(low) + max(high)) / 2, max(max(high) - min(low), _LEAST_RANGE) / 2
    axes.set_ylim(middle - half, middle + half)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
