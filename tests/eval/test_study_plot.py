"""The plot of a study, read off the figure that is drawn."""

from typing import Any

import matplotlib.figure
import pytest

from dialog_eval.metrics.significance import Difference
from dialog_eval.reproduce.pages.plots import Panel, study_plot


def figure_of(monkeypatch: pytest.MonkeyPatch, panels: list[Panel]) -> Any:
    drawn: list[Any] = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    study_plot(panels, {}, "VQA")
    return drawn[0]


def of(mean: float) -> Difference:
    return Difference(mean=mean, low=mean - 0.1, high=mean + 0.1, p=1.0, seeds=1)


def test_a_row_is_of_one_model_in_all_panels_and_panels_of_a_kind_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    panels = [
        Panel("similarity", "vqa", {"untuned": of(0.2), "A": of(0.3), "$B_1$": of(0.5)}),
        Panel("statement", "vqa", {"untuned": of(0.6), "$B_1$": of(0.8)}),
        Panel("image R@1", "retrieval", {"untuned": of(0.4), "$B_1$": of(0.45)}),
    ]
    axes = figure_of(monkeypatch, panels).axes
    models = [label.get_text() for label in axes[0].get_yticklabels()]
    assert models == ["untuned", "A", "$B_1$"]
    for one, panel in zip(axes, panels, strict=True):
        dots = [tuple(float(x[0]) for x in line.get_data()) for line in one.lines if line.get_marker() == "o"]
        assert {models[int(row)]: pytest.approx(mean) for mean, row in dots} == {
            model: 100 * estimate.mean for model, estimate in panel.estimates.items()
        }
        assert one.get_ylim() == axes[0].get_ylim()
    assert axes[0].get_xlim() == axes[1].get_xlim() != axes[2].get_xlim()
    low, high = axes[0].get_xlim()
    assert low < 10
    assert high > 90
