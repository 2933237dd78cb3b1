"""The plot, as matplotlib was told to draw it and as it came out."""

import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.results import entry, only, pixels, save, sweep

from dialog_eval.tables.plots import sweep_plot
from dialog_eval.tables.pooling import Section, pool
from dialog_gen.core.errors import MissingExtraError, UsageError
from dialog_gen.core.extras import install_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> "list[Figure]":
    """Those that are saved from now on."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    saved: list[Figure] = []
    savefig = figure.savefig

    def keep(self: "Figure", *arguments: Any, **options: Any) -> None:
        saved.append(self)
        savefig(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", keep)
    return saved


def curves(figure: "Figure", panel: int = 0) -> "list[Line2D]":
    """The lines of the means, without the edges of bands and the marked ends."""
    lines = figure.axes[panel].get_lines()
    return [line for line in lines if line.get_linestyle() == "-" and line.get_marker() != "None"]


def points(line: "Line2D") -> npt.NDArray[np.float64]:
    """(points, 2)"""
    return np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])


def legend(figure: "Figure") -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def has_colour(image: npt.NDArray[np.int64], colour: str) -> bool:
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return int((np.abs(image - wanted).max(axis=2) < 6).sum()) > 50


def test_a_line_a_kind_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    both = pixels(sweep_plot(pool(save(tmp_path, sweep()))))
    assert [has_colour(both, colour) for colour in (BLUE, ORANGE, GREEN)] == [True, True, False]
    one = pixels(sweep_plot(pool(save(tmp_path, [item for item in sweep() if item.blend != "weight"]))))
    assert [has_colour(one, colour) for colour in (BLUE, ORANGE)] == [True, False]


def test_points_bands_and_ends(tmp_path: Path, figures: "list[Figure]") -> None:
    section = only(pool(save(tmp_path, sweep())))
    sweep_plot([section])
    (axes,) = figures[0].axes
    cells = {row.label: row.cells["accuracy"].estimate for row in section.rows}
    for kind, curve, band in zip(("embedding", "weight"), curves(figures[0]), axes.collections, strict=True):
        labels = ["DRAFT", f"DRAFT, {kind} blend 0.5", f"DRAFT, {kind} blend 0.9", "base"]
        means = [100 * cells[label].mean for label in labels]
        assert points(curve).tolist() == [list(point) for point in zip([0, 0.5, 0.9, 1], means, strict=True)]
        corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).tolist()}
        for beta, label in zip([0, 0.5, 0.9, 1], labels, strict=True):
            assert {(beta, 100 * cells[label].low), (beta, 100 * cells[label].high)} <= corners
    marked = {line.get_marker(): points(line).tolist() for line in axes.get_lines() if line.get_linestyle() == "None"}
    assert marked == {"*": [[1, 50]], "D": [[0, 75]]}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("β, share of the baseline", "VQA accuracy (%)")
    assert legend(figures[0]) == ["embedding blend", "weight blend", "base (β = 1)", "tuned alone (β = 0)"]


def test_seeds_are_one_line(tmp_path: Path, figures: "list[Figure]") -> None:
    """Tuned models that hit everything and nothing: halfway."""
    seeds = [
        [entry("DRAFT, weight blend 0.5", [hit] * 4, seed, blend="weight", beta=0.5), entry("DRAFT", [hit] * 4, seed)]
        for seed, hit in (("1", 1.0), ("2", 0.0))
    ]
    sweep_plot(pool(save(tmp_path, *seeds, baseline=None)))
    assert [points(curve).tolist() for curve in curves(figures[0])] == [[[0, 50], [0.5, 50]]]


def test_ends_that_were_not_measured(tmp_path: Path, figures: "list[Figure]") -> None:
    blends = [item for item in sweep() if item.blend is not None]
    sweep_plot(pool(save(tmp_path, blends, baseline=None)))
    assert [points(curve)[:, 0].tolist() for curve in curves(figures[0])] == [[0.5, 0.9]] * 2
    assert legend(figures[0]) == ["embedding blend", "weight blend"]


def test_panels(tmp_path: Path, figures: "list[Figure]") -> None:
    """Recall at 1 both ways, the accuracy over all questions, what a task has first; nothing for what has no blends."""
    some = [
        *(item for metric in ("image R@1", "image R@5", "text R@1") for item in sweep(task="retrieval", metric=metric)),
        *(item for metric in ("accuracy, other", "accuracy") for item in sweep(metric=metric)),
        *(item for metric in ("top-1", "top-5") for item in sweep(task="classification", metric=metric)),
        entry("base", [1.0, 0], dataset="another"),
    ]
    sweep_plot(pool(save(tmp_path, some)))
    assert [axes.get_ylabel() for axes in figures[0].axes] == [
        "image R@1 (%)",
        "text R@1 (%)",
        "VQA accuracy (%)",
        "top-1 (%)",
    ]
    assert len(legend(figures[0])) == 4


@pytest.mark.parametrize("names", [("$x_$", "_y $_1_2$ 字"), ("base", "a " * 60)])
def test_any_label_fits(tmp_path: Path, figures: "list[Figure]", names: tuple[str, str]) -> None:
    """No text is left out, is taken for a formula, or reaches beyond the picture."""
    base, tuned = names
    some = [
        item.model_copy(update={"label": item.label.replace(old, new), "dataset": f"$d {base}", "weights_sha256": "w"})
        for stem in ("", "2nd ")
        for item in sweep()
        for old, new in [("base", base) if item.label == "base" else ("DRAFT", stem + tuned)]
    ]
    sweep_plot(pool(save(tmp_path, some, baseline=base)))
    (figure,) = figures
    # Two lines of each checkpoint, and the ends.
    assert len(legend(figure)) == 2 * 2 + 2
    assert legend(figure)[0].replace("\n", " ").startswith(tuned.strip())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 <= box.x1 <= page.x1
    assert page.y0 <= box.y0


def no_blend(folder: Path) -> list[Section]:
    return pool(save(folder, [entry("base", [1.0, 0]), entry("DRAFT", [1.0, 1])]))


def test_no_blends(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No sweep in these files: no entry is a blend.*dialog-eval sweep"):
        sweep_plot(no_blend(tmp_path))


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.layout_engine"):
        monkeypatch.setitem(sys.modules, name, None)
    sections = pool(save(tmp_path, sweep()))
    with pytest.raises(MissingExtraError, match=re.escape(install_command("eval"))):
        sweep_plot(sections)
    # What is wrong with the files is said first: installing would not help.
    with pytest.raises(UsageError, match="No sweep"):
        sweep_plot(no_blend(tmp_path))
