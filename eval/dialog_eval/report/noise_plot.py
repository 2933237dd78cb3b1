"""The plot of a noise sweep: what the noise of text-only training does to what a decoder writes (arXiv 2211.09778)."""

from collections.abc import Sequence
from typing import Any

from dialog_eval.report.plotting import STYLES, Plot, draw_line, measures
from dialog_eval.report.pooling import Estimate, Section

_LINES = {"": "images", "blind": "blind: the mean image", "from captions": "captions"}


def noise_plot(sections: Sequence[Section]) -> bytes:
    """A PNG: a panel a measure, x the noise of the training, a line for each kind of vector that a decoder was given.

    Bands are the intervals. Rows with a noise are of one sweep, whatever their labels; of two with the same noise the
    later one shows. Raises ValueError where no row has a noise, MissingExtraError where matplotlib is not installed.
    """
    panels = [
        (section, name, lines) for section in sections for name in measures(section) if (lines := _lines(section, name))
    ]
    if not panels:
        raise ValueError("no row has a noise")
    plot = Plot(len(panels))
    legend: dict[str, Any] = {}
    for axes, (section, name, lines) in zip(plot.panels, panels, strict=True):
        for (suffix, told), style in zip(_LINES.items(), STYLES, strict=False):
            if suffix in lines:
                legend.setdefault(told, draw_line(axes, lines[suffix], *style))
        plot.describe(axes, section, name)
        axes.set_xlabel("w, noise on text vectors in training")
    return plot.png(legend)


def _lines(section: Section, name: str) -> dict[str, dict[float, Estimate]]:
    """What follows the last comma of a label, where that is a kind of vector -> noise -> estimate."""
    lines: dict[str, dict[float, Estimate]] = {}
    for row in section.rows:
        if row.noise is not None and name in row.cells:
            suffix = row.label.rpartition(", ")[2]
            kind = suffix if suffix in _LINES else ""
            lines.setdefault(kind, {})[row.noise] = row.cells[name].estimate
    return lines
