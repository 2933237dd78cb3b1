"""What a page says in words and shows in its forest plot."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.results import entry, pixels, save, sweep

from dialog_eval.results import Entry, Example, Examples, Reference, Shown
from dialog_eval.tables.forest import COLOURS, forest, forest_plot
from dialog_eval.tables.pooling import pool
from dialog_eval.tables.table import write_table
from dialog_eval.tables.verdict import title, verdict
from dialog_gen.core.errors import UsageError

UGLY = '"><script>alert(1)</script>'


def hits(share: float, items: int = 200) -> list[float]:
    return (np.arange(items) < share * items).astype(float).tolist()


def pair(label: str, base: float, own: float, **more: Any) -> list[Entry]:
    return [entry("base", hits(base), **more), entry(label, hits(own), **more)]


def said(files: list[Path]) -> list[str]:
    return ["".join(sentence) for sentence in verdict(pool(files))]


def test_gain_cost_and_nothing(tmp_path: Path) -> None:
    retrieval: dict[str, Any] = {"task": "retrieval", "protocol": "5"}
    files = save(
        tmp_path,
        pair("DRAFT", 0.5, 0.7)
        + pair("DRAFT", 0.6, 0.4, metric="image R@1", **retrieval)
        + pair("DRAFT", 0.5, 0.5, metric="text R@1", **retrieval, weights="2"),
    )
    (sentence,) = said(files)
    assert re.fullmatch(
        r"DRAFT gains 20\.0 points \[1\d\.\d, 2\d\.\d\] in VQA accuracy; "
        r"loses 20\.0 points \[1\d\.\d, 2\d\.\d\] in image R@1; no difference can be seen in text R@1 \+0\.0 "
        r"\[\+0\.0, \+0\.0\]\.",
        sentence,
    )
    assert title(pool(files)) == "DRAFT against base"


def test_the_verdict_is_in_the_first_ten_lines(tmp_path: Path) -> None:
    trained = {"training": {"model": "base", "steps": 400, "rows": 3031, "settings": {"data.dialogues": "dialogues"}}}
    for count in (1, 6):
        some = [one for number in range(count) for one in pair(f"m{number}", 0.5, 0.7, weights=f"{number}")]
        settings = {"models": {f"m{number}": trained for number in range(count)}}
        write_table(save(tmp_path, some, settings=settings), tmp_path / "t.md")
        first = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()[:10]
        assert first[0] == ("# m0 against base" if count == 1 else "# 6 models against base")
        assert first[2].startswith("m0: tuned from base on 3,031 images of dialogues in 400 steps.")
        wanted = "- **m0** gains 20.0 points [" if count == 1 else "- **VQA accuracy**: 6 of 6 models gain, most m"
        assert any(line.startswith(wanted) for line in first)


def test_a_training_from_scratch_is_said_to_be_one(tmp_path: Path) -> None:
    settings = {"data.dialogues": "None", "data.images": "images", "from_scratch": "True"}
    trained = {"training": {"model": "base", "steps": 600, "rows": 3031, "settings": settings}}
    files = save(tmp_path, pair("m0", 0.5, 0.7, weights="0"), settings={"models": {"m0": trained}})
    write_table(files, tmp_path / "t.md")
    wanted = "m0: trained from scratch with the architecture of base on 3,031 images of images in 600 steps."
    assert wanted in (tmp_path / "t.md").read_text(encoding="utf-8")


def test_trainings_that_begin_with_several_models(tmp_path: Path) -> None:
    files: list[Path] = []
    for number in range(3):
        trained = {"model": f"clip-{number % 2}", "steps": 400, "settings": {"data.dialogues": "dialogues"}}
        settings = {"models": {"m": {"training": trained, "weights_sha256": f"{number}"}}}
        (tmp_path / f"{number}").mkdir()
        files += save(tmp_path / f"{number}", pair("m", 0.5, 0.7, weights=f"{number}"), settings=settings)
    write_table(files, tmp_path / "t.md")
    wanted = "m: tuned from clip-0, clip-1 on dialogues in 400 steps, 3 seeds"
    assert wanted in (tmp_path / "t.md").read_text(encoding="utf-8")


def test_many_models_are_told_by_measure(tmp_path: Path) -> None:
    some = [one for number in range(4) for one in pair(f"m{number}", 0.5, 0.2 + number / 10, weights=f"{number}")]
    (sentence,) = said(save(tmp_path, some))
    assert re.fullmatch(
        r"VQA accuracy: 3 of 4 models lose, most m0 by 30\.0 points \[2\d\.\d, 3\d\.\d\]; for 1 no sure .*", sentence
    )
    (sentence,) = said(save(tmp_path, [*some, *pair("m4", 0.5, 0.9, weights="4")]))
    assert re.match(r"VQA accuracy: 1 of 5 models gains, m4 by 40\.0 points \[3\d\.\d, 4\d\.\d\]; 3 of 5", sentence)


def test_a_figure_without_the_image_is_said(tmp_path: Path) -> None:
    yes = Reference(name='always "yes"', task="vqa", dataset="shapes 0123", metric="accuracy", value=0.55)
    files = save(tmp_path, pair("DRAFT", 0.5, 0.9), references=[yes])
    assert said(files)[1] == (
        'Not shown to be above an answer without the image: VQA accuracy of base 50.0 (against always "yes" 55.0).'
    )
    write_table(files, tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    assert "50.0† [" in text
    assert "90.0 [" in text
    # A model that answers the same without the image.
    blind = save(tmp_path, [*pair("DRAFT", 0.5, 0.9), entry("DRAFT, blind", hits(0.9))])
    assert said(blind)[1].endswith("VQA accuracy of DRAFT 90.0 (against the model blind).")


def test_ways_of_asking_are_told_apart(tmp_path: Path) -> None:
    some = pair("DRAFT", 0.5, 0.5) + pair("DRAFT", 0.5, 0.9, protocol="MC-18, asked by statement")
    (sentence,) = said(save(tmp_path, some))
    assert re.search(r"gains 40\.0 points \[\S+ \S+\] in VQA accuracy \(asked by statement\)", sentence)
    assert "no difference can be seen in VQA accuracy +0.0" in sentence


def test_blends_and_no_baseline(tmp_path: Path) -> None:
    assert said(save(tmp_path, sweep()))[-1].startswith("Of 4 blends with base")
    alone = said(save(tmp_path, [entry("DRAFT", hits(0.5))], baseline=None))
    assert alone[0] == "Nothing is compared: measure a baseline too (--baseline)."
    assert alone[1].startswith("DRAFT: VQA accuracy 50.0 [")


def test_forest(tmp_path: Path) -> None:
    some = [*pair("better", 0.5, 0.7), entry("worse", hits(0.3)), entry("same", hits(0.5))]
    sections = pool(save(tmp_path, some))
    drawn = forest(sections)
    assert drawn is not None
    (panel,) = drawn.panels
    assert [(bar.label, bar.kind) for bar in panel.bars] == [("better", "gain"), ("worse", "loss"), ("same", "none")]
    assert 0 in drawn.ticks
    assert drawn.place(drawn.ticks[0] / 100) == 0
    assert drawn.place(drawn.ticks[-1] / 100) == 100
    assert all(
        drawn.ticks[0] <= 100 * bar.difference.low <= 100 * bar.difference.high <= drawn.ticks[-1] for bar in panel.bars
    )
    pytest.importorskip("matplotlib")
    image = pixels(forest_plot(sections))
    for kind in ("gain", "loss", "none"):
        wanted = np.array([int(COLOURS[kind][at : at + 2], 16) for at in (1, 3, 5)])
        assert (np.abs(image - wanted).max(axis=2) < 6).sum() > 50


def test_plot_without_a_sweep_is_the_forest(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = save(tmp_path, pair("DRAFT", 0.5, 0.7))
    write_table(files, tmp_path / "t.md", tmp_path / "p.png", forest=tmp_path / "f.png")
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "f.png").read_bytes() == forest_plot(pool(files))
    assert "](p.png)" in (tmp_path / "t.md").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="Nothing to plot"):
        forest_plot(pool(save(tmp_path, [entry("DRAFT", hits(0.5))], baseline=None)))


def test_svg_is_valid_and_escaped(tmp_path: Path) -> None:
    files = save(tmp_path, pair(UGLY, 0.5, 0.7, metric="accuracy"))
    write_table(files, tmp_path / "t.html", title="A <b>title</b>")
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in page
    drawings = re.findall(r'<div class="plot[^>]*>(<svg.*?</svg>)</div>', page, re.DOTALL)
    parsed = [ElementTree.fromstring(drawing) for drawing in drawings]
    (bar,) = [one for one in parsed if one.get("role") == "img"]
    assert str(bar.get("aria-label")).startswith(f"{UGLY}, VQA accuracy: +20.0 [")
    (line,) = [one for one in bar.iter("line") if one.get("class") == "range"]
    drawn = forest(pool(files))
    assert drawn is not None
    difference = drawn.panels[0].bars[0].difference
    assert [line.get("x1"), line.get("x2")] == [f"{drawn.place(end)}%" for end in (difference.low, difference.high)]


def test_wins_and_losses(tmp_path: Path) -> None:
    def example(question: str) -> Example:
        item = Shown(text=question, image_id="7", thumbnail="QUJD")
        return Example(item=item, right=Shown(text="red"), answer=Shown(text="red"), baseline_answer=Shown(text=UGLY))

    base, own = pair("DRAFT", 0.5, 0.7)
    examples = Examples(
        baseline="base", measure="accuracy", win_count=40, loss_count=0, wins=[example(f"What {UGLY}?")], losses=[]
    )
    write_table(save(tmp_path, [base, own.model_copy(update={"examples": examples})]), tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "DRAFT is right, base is not: 40 items, of which 1 drawn at random" in page
    assert "base is right" not in page
    assert 'src="data:image/webp;base64,QUJD"' in page
    assert page.count("&lt;script&gt;") == 2
    assert "<script" not in page


def test_long_notes_become_lists(tmp_path: Path) -> None:
    base, own = pair("DRAFT", 0.5, 0.7)
    note = "without the image: accuracy equals the prior; accuracy, yes/no equals always yes"
    files = save(tmp_path, [base, own.model_copy(update={"notes": [note]})])
    write_table(files, tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    at = lines.index("- DRAFT")
    assert lines[at + 1 : at + 3] == [
        "    - without the image: accuracy equals the prior",
        "    - without the image: accuracy, yes/no equals always yes",
    ]


def test_small_distances_keep_their_digits(tmp_path: Path) -> None:
    some = [entry(label, [value, value], task="diagnostics", metric="MMD² to the baseline") for label, value in
            (("base", 0.0), ("DRAFT", 0.0003124))]  # fmt: skip
    write_table(save(tmp_path, some), tmp_path / "t.md")
    assert "0.000312 [0.000312, 0.000312]" in (tmp_path / "t.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["t.md", "t.html"])
def test_the_page_says_what_its_measures_mean(tmp_path: Path, page: str) -> None:
    retrieval = pair("DRAFT", 0.5, 0.7, metric="image R@1", task="retrieval", protocol="5")
    write_table(save(tmp_path, retrieval), tmp_path / page)
    text = (tmp_path / page).read_text(encoding="utf-8")
    assert "how many find their own image first" in text
    assert "Official accuracy" not in text
    write_table(save(tmp_path, retrieval + pair("DRAFT", 0.5, 0.7)), tmp_path / page)
    _, _, overview = (tmp_path / page).read_text(encoding="utf-8").partition("Overview")
    assert overview.index("find their own image first") < overview.index("Official accuracy") < overview.index("More m")
