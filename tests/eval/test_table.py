import base64
import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.results import entry, only, pixels, save, sweep

from dialog_eval.results import Entry, Reference, Results
from dialog_eval.tables.pooling import pool
from dialog_eval.tables.table import write_table
from dialog_gen.core.errors import DialogGenError, MissingExtraError, UsageError
from dialog_gen.core.extras import install_command

IMAGES = [0, 0, 1, 1, 2, 2]
BASE = [1.0, 0, 0, 0, 1, 0]
UGLY = '<script>alert("1")</script> a|b *c* _d_ `e` [f](g) & mscoco_val2014 \\'


def reference(value: float, name: str = "always yes", metric: str = "accuracy") -> Reference:
    return Reference(name=name, task="vqa", dataset="shapes 0123", metric=metric, value=value)


class Tables(HTMLParser):
    """Checks that what is opened is closed; collects cells, elements and the text outside the style sheet."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of the table's lines; an escaped pipe does not end a cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return rows


# Figures


def test_equal_differences_have_no_width(tmp_path: Path) -> None:
    """Seeds that are off by -0.25 and +0.5 everywhere: their mean is 0.125 above the baseline, on every item."""
    up, down = [value + 0.5 for value in BASE], [value - 0.25 for value in BASE]
    files = save(
        tmp_path,
        [entry("base", BASE, groups=IMAGES), entry("DRAFT", up, "seed 1", IMAGES)],
        [entry("DRAFT", down, "seed 2", IMAGES)],
    )
    base, draft = (row.cells["accuracy"] for row in only(pool(files)).rows)
    assert draft.difference is not None
    assert (draft.difference.mean, draft.difference.low, draft.difference.high) == (0.125, 0.125, 0.125)
    assert draft.estimate.mean == pytest.approx(2 / 6 + 0.125)
    # The spread of -0.25 and 0.5 around their mean, n - 1.
    assert (draft.repetitions, draft.spread) == (2, pytest.approx(0.75 / np.sqrt(2)))
    assert (base.repetitions, base.spread, base.difference) == (1, None, None)


def test_intervals_against_all_draws(tmp_path: Path) -> None:
    """Of 3 images, drawn 27 ways, the lowest three times is 1 of 27 draws: more than 2.5 %, and so the interval's end.

    Over the seeds the images' mean differences are 1, 0 and -0.5. Drawn item by item the ends would be rarer, and of
    the seeds one by one they would be others.
    """
    seeds = [[1.0, 1, 0, 0, 0, 0], [1.0, 1, 1, -1, 0, 0]]
    files = save(
        tmp_path,
        [entry("base", [0, 0, 0, 0, 0.5, 0.5], groups=IMAGES)],
        *[[entry("DRAFT", values, str(number), IMAGES)] for number, values in enumerate(seeds)],
    )
    draft = only(pool(files)).rows[1].cells["accuracy"]
    for found, images in ((draft.estimate, [1, 0, 0]), (draft.difference, [1, 0, -0.5])):
        assert found is not None
        assert found.mean == pytest.approx(np.mean(images))
        assert [found.low, found.high] == [min(images), max(images)]


def test_intervals_against_a_bootstrap_of_lists(tmp_path: Path) -> None:
    """Two seeds, 60 images of 1 to 4 questions: 2,000 draws of whole images with the same seed, one after the other."""
    rng = np.random.default_rng(7)
    images = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    base, first, second = rng.random((3, len(images)))
    shuffled = rng.permutation(len(images))
    groups = images[shuffled].tolist()
    files = save(
        tmp_path,
        *[
            [
                entry("base", base[shuffled].tolist(), groups=groups),
                entry("DRAFT", values[shuffled].tolist(), str(seed), groups),
            ]
            for seed, values in enumerate((first, second))
        ],
    )
    row = only(pool(files)).rows[1].cells["accuracy"]
    pooled = [(one + two) / 2 for one, two in zip(first, second, strict=True)]
    for found, values in ((row.estimate, pooled), (row.difference, np.subtract(pooled, base))):
        of_image = [[value for value, image in zip(values, images, strict=True) if image == i] for i in range(60)]
        means = [
            np.mean(np.concatenate([of_image[i] for i in draw]))
            for draw in np.random.default_rng(0).integers(60, size=(2000, 60))
        ]
        assert found is not None
        wanted = [np.mean(values), *np.percentile(means, [2.5, 97.5])]
        assert [found.mean, found.low, found.high] == pytest.approx(wanted, abs=1e-12)
    assert row.spread == pytest.approx(abs(first.mean() - second.mean()) / np.sqrt(2))


def test_difference_is_paired(tmp_path: Path) -> None:
    """Better on 40 of 400 items and never worse: a difference of 10 points, of binomial error, whatever the items."""
    rng = np.random.default_rng(1)
    base = (rng.random(400) < 0.5).astype(float)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:40]] = 1
    section = only(pool(save(tmp_path, [entry("base", base.tolist()), entry("DRAFT", better.tolist())])))
    found = section.rows[1].cells["accuracy"].difference
    assert found is not None
    error = np.sqrt(0.1 * 0.9 / 400)
    assert found.mean == pytest.approx(0.1)
    assert [(found.low - 0.1) / error, (found.high - 0.1) / error] == pytest.approx([-1.96, 1.96], abs=0.15)


def test_the_same_weights_count_once(tmp_path: Path) -> None:
    """A baseline that every seed's file repeats, and a file that is named twice."""
    files = save(tmp_path, *[[entry("base", BASE), entry("DRAFT", BASE, f"seed {seed}")] for seed in range(3)])
    section = only(pool([*files, files[0]]))
    assert {row.label: row.cells["accuracy"].repetitions for row in section.rows} == {"base": 1, "DRAFT": 3}
    # Measured again with another outcome: the mean of the two, and still one.
    again = save(tmp_path, [entry("base", [1.0, 0])], [entry("base", [1.0, 1])])
    cell = only(pool(again)).rows[0].cells["accuracy"]
    assert (cell.estimate.mean, cell.repetitions) == (0.75, 1)


def test_order_and_sections(tmp_path: Path) -> None:
    files = save(
        tmp_path,
        [entry("b", BASE), entry("a", BASE), entry("a", BASE, task="retrieval", metric="image R@1")],
        [entry("c", BASE), entry("base", BASE), entry("a", BASE, metric="accuracy, other", weights="2")],
        [entry("a", BASE, dataset="other"), entry("a", BASE, protocol="top-1000")],
    )
    sections = pool(files)
    assert [(s.task, s.dataset, s.protocol) for s in sections] == [
        ("vqa", "shapes 0123", "MC-18"),
        ("retrieval", "shapes 0123", "MC-18"),
        ("vqa", "other", "MC-18"),
        ("vqa", "shapes 0123", "top-1000"),
    ]
    assert [row.label for row in sections[0].rows] == ["base", "b", "a", "c"]
    assert [column.name for column in sections[0].columns] == ["accuracy", "accuracy, other"]
    assert [list(row.cells) for row in sections[0].rows] == [["accuracy"]] * 2 + [["accuracy", "accuracy, other"]] + [
        ["accuracy"]
    ]
    assert sections[0].rows[2].cells["accuracy, other"].difference is None
    assert [section.baseline for section in sections] == ["base", None, None, None]


def test_each_baseline_has_its_sections(tmp_path: Path) -> None:
    """Rows are compared with the baseline of their own file, whatever else was measured."""
    (one,) = save(tmp_path, [entry("base", BASE), entry("DRAFT", [1.0] * 6)], references=[reference(0.3)])
    other, alone = tmp_path / "other.json", tmp_path / "alone.json"
    Results(baseline="scratch", entries=[entry("scratch", [0.0] * 6), entry("MulT", BASE)]).save(other)
    Results(entries=[entry("DRAFT", [0.0] * 6, "2")]).save(alone)
    first, second, third = pool([one, other, alone])
    assert [[row.label for row in s.rows] for s in (first, second, third)] == [
        ["base", "DRAFT"],
        ["scratch", "MulT"],
        ["DRAFT"],
    ]
    assert [s.baseline for s in (first, second, third)] == ["base", "scratch", None]
    differences = [s.rows[-1].cells["accuracy"].difference for s in (first, second, third)]
    assert [d and round(d.mean, 6) for d in differences] == [0.666667, 0.333333, None]
    assert [bool(s.references) for s in (first, second, third)] == [True, False, False]
    # One that names none goes with the only one there is.
    assert only(pool([one, alone])).rows[1].cells["accuracy"].repetitions == 2
    # A baseline is measured in a file that names it.
    Results(baseline="scratch", entries=[entry("MulT", BASE)]).save(other)
    Results(baseline="base", entries=[entry("scratch", BASE)]).save(alone)
    with pytest.raises(UsageError, match="'scratch' has no entry in these files: add"):
        pool([one, other, alone])


def test_references_stay_with_their_files_sections(tmp_path: Path) -> None:
    (closed,) = save(tmp_path, [entry("base", BASE)], references=[reference(0.3), reference(0.5, metric="yes/no")])
    opened = tmp_path / "opened.json"
    Results(entries=[entry("base", BASE, protocol="top-1000")], references=[reference(0.2)]).save(opened)
    sections = pool([closed, opened])
    assert [s.references for s in sections] == [
        {"always yes": {"accuracy": 0.3, "yes/no": 0.5}},
        {"always yes": {"accuracy": 0.2}},
    ]
    assert [(c.name, c.items, c.images) for c in sections[0].columns] == [("accuracy", 6, None), ("yes/no", 0, None)]


# What is written


def two_seeds(folder: Path) -> list[Path]:
    """base at 50 %, one that is 20 points above it everywhere, one that differs either way, and a reference."""
    images = [image for image in range(15) for _ in range(2)]
    values, above, either = [0.5] * 30, [0.7] * 30, [0.7, 0.7, 0.5, 0.5, 0.3, 0.3] * 5
    return save(
        folder,
        [entry("base", values, groups=images), entry("DRAFT", above, "1", images), entry("x", either, "x", images)],
        [entry("DRAFT", above, "2", images)],
        references=[reference(0.2966)],
    )


def test_markdown(tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.md"
    write_table(two_seeds(tmp_path), out)
    text = out.read_text(encoding="utf-8")
    assert markdown_rows(text) == [
        ["", "accuracy"],
        ["-" * 15, "-" * 23 + ":"],
        ["base (baseline)", "50.0 [50.0, 50.0]"],
        ["DRAFT", "70.0 [70.0, 70.0]"],
        ["↳ difference", "**+20.0 [+20.0, +20.0]**"],
        ["↳ spread", "± 0.0 (n = 2)"],
        ["x", "50.0 [42.0, 58.0]"],
        ["↳ difference", "+0.0 [-8.0, +8.0]"],
        ["always yes", "29.7"],
        ["items", "30 items, 15 images"],
    ]
    # Columns stand below each other, to be read as it is.
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert "<summary>Visual question answering: shapes 0123, MC-18</summary>\n" in text
    for said in (
        "95 % bootstrap",
        "over images",
        "paired differences to base",
        "n repetitions",
        "30 items, 15 images.",
    ):
        assert said in text
    assert [file.name for file in out.parent.iterdir()] == ["table.md"]


def test_html(tmp_path: Path) -> None:
    out = tmp_path / "table.html"
    write_table(two_seeds(tmp_path), out)
    page = out.read_text(encoding="utf-8")
    tables = Tables(page)
    assert tables.rows == [
        ["", "accuracy30 items, 15 images"],
        ["basebaseline", "50.0 [50.0, 50.0]"],
        ["DRAFT", "70.0 [70.0, 70.0]+20.0 [+20.0, +20.0]± 0.0 (n = 2)"],
        ["x", "50.0 [42.0, 58.0]+0.0 [-8.0, +8.0]"],
        ["always yes", "29.7"],
    ]
    bold = re.findall("<div><strong>(.*?)</strong></div>", page.replace("\n", ""))
    assert bold == ["<span>+20.0</span> <i>[+20.0, +20.0]</i>"]
    assert "paired differences to base" in tables.text
    assert {told["data-measure"] for tag, told in tables.elements if tag == "td"} == {"accuracy"}
    # One file: nothing is fetched, nothing runs.
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tables.elements}
    assert not re.search(r"https?://|@import|url\(", page)
    for used in ("prefers-color-scheme: dark", "@media print", "max-width: 52rem", "width=device-width"):
        assert used in page


def several_tasks(folder: Path) -> list[Path]:
    """base and DRAFT on two tasks, scratch and MulT on one of them, MulT's answers without a baseline."""
    half, above = [0.5] * 30, [0.7] * 30
    retrieval: dict[str, Any] = {"task": "retrieval", "metric": "image R@1", "protocol": "5 captions"}
    found = [
        Results(
            baseline="base",
            entries=[
                entry("base", half, **retrieval),
                entry("DRAFT", above, **retrieval),
                entry("base", half),
                entry("base, blind", above),
                entry("DRAFT", above),
                entry("DRAFT", BASE * 5, metric="accuracy, other"),
            ],
            references=[reference(0.3), reference(0.4, metric="accuracy, other")],
        ),
        Results(baseline="base", entries=[entry("base", half), entry("DRAFT", half, "2")]),
        Results(baseline="scratch", entries=[entry("scratch", above), entry("MulT", half)]),
        Results(entries=[entry(f"MulT{end}", above, protocol="generated") for end in ("", ", from captions")]),
        Results(entries=[entry("CLOSE", half, protocol="generated")]),
    ]
    paths = [folder / f"{number}.json" for number in range(len(found))]
    for path, results in zip(paths, found, strict=True):
        results.save(path)
    return paths


def test_overview(tmp_path: Path) -> None:
    out = tmp_path / "t.md"
    write_table(several_tasks(tmp_path), out)
    first, second, *others = re.split("^## |^<summary>", out.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert first.startswith("# DRAFT against base; MulT against scratch\n\n")
    assert second.startswith("Overview\n")
    half, above = "50.0 [50.0, 50.0]", "70.0 [70.0, 70.0]"
    assert markdown_rows(second)[0] == ["", "image R@1", "VQA, MC-18", "VQA, generated"]
    assert markdown_rows(second)[2:] == [
        ["base (baseline)", half, "50.0† [50.0, 50.0]", ""],
        ["DRAFT", above, "60.0 [60.0, 60.0]", ""],
        ["↳ difference", "**+20.0 [+20.0, +20.0]**", "+10.0° [+10.0, +10.0]", ""],
        ["scratch (baseline)", "", above, ""],
        ["MulT", "", half, above],
        ["↳ difference", "", "**-20.0 [-20.0, -20.0]**", ""],
        ["CLOSE", "", "", half],
        ["always yes", "", "30.0", ""],
    ]
    # Its two seeds are +20 and +0: that it is +10 on every image does not make it sure.
    assert [other.partition("</summary>")[0] for other in others] == [
        "Retrieval: shapes 0123, 5 captions",
        "Visual question answering: shapes 0123, MC-18, against base",
        "Visual question answering: shapes 0123, MC-18, against scratch",
        "Visual question answering: shapes 0123, generated",
    ]
    write_table(several_tasks(tmp_path), out.with_suffix(".html"))
    tables = Tables(out.with_suffix(".html").read_text(encoding="utf-8"))
    assert tables.rows[0] == ["", "image R@1", "VQA, MC-18", "VQA, generated"]
    assert tables.rows[4] == ["MulT", "", f"{half}-20.0 [-20.0, -20.0]", above]


def test_overview_tells_datasets_apart(tmp_path: Path) -> None:
    some = [entry("base", BASE), entry("base", BASE, dataset="other"), entry("base", BASE, metric="x", protocol="y")]
    write_table(save(tmp_path, some), tmp_path / "t.md")
    overview = (tmp_path / "t.md").read_text().split("## ")[1].partition("<details")[0]
    assert markdown_rows(overview)[0] == ["", "VQA, MC-18, shapes 0123", "VQA, MC-18, other"]


def test_what_touches_0_as_printed_is_not_marked(tmp_path: Path) -> None:
    """0.04 points above the baseline everywhere is printed as +0.0; 0.06 as +0.1."""
    base = BASE * 5
    near, far = [value + 0.0004 for value in base], [value - 0.0006 for value in base]
    write_table(save(tmp_path, [entry("base", base), entry("near", near), entry("far", far)]), tmp_path / "t.md")
    rows = markdown_rows((tmp_path / "t.md").read_text())
    assert [row[1] for row in rows if "difference" in row[0]] == ["+0.0 [+0.0, +0.0]", "**-0.1 [-0.1, -0.1]**"]


@pytest.mark.parametrize("suffix", [".md", ".html"])
def test_blind_runs_are_explained(tmp_path: Path, suffix: str) -> None:
    for label, told in (("base, blind", True), ("blind", False)):
        out = tmp_path / f"t{suffix}"
        write_table(save(tmp_path, [entry("base", BASE), entry(label, BASE)]), out)
        assert ("Blind: with the mean image in every image's place." in unescape(out.read_text())) == told


def test_without_a_baseline(tmp_path: Path) -> None:
    write_table(save(tmp_path, [entry("DRAFT", BASE)], baseline=None), tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text()
    assert "no baseline was measured" in text
    assert "over items" in text
    assert [row[0] for row in markdown_rows(text)[2:]] == ["DRAFT", "items"]


def ugly(folder: Path) -> list[Path]:
    told = Reference(name=UGLY, task="vqa", dataset=UGLY, metric=UGLY, value=0.5)
    some = [entry(label, BASE, dataset=UGLY, protocol=UGLY, metric=UGLY) for label in (UGLY, f"{UGLY}\n2")]
    return save(folder, some, baseline=UGLY, references=[told])


def test_html_escapes(tmp_path: Path) -> None:
    write_table(ugly(tmp_path), tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    tables = Tables(page)
    assert "script" not in {tag for tag, _ in tables.elements}
    assert [row[0] for row in tables.rows] == ["", UGLY + "baseline", f"{UGLY}\n2", UGLY]
    assert {told["data-measure"] for tag, told in tables.elements if tag == "td"} == {UGLY}
    assert f"{UGLY}, {UGLY}" in tables.text
    assert f"paired differences to {UGLY} in" in tables.text


def test_markdown_escapes(tmp_path: Path) -> None:
    write_table(ugly(tmp_path), tmp_path / "t.md")
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    told = r'&lt;script&gt;alert("1")&lt;/script&gt; a\|b \*c\* \_d\_ \`e\` \[f\](g) &amp; mscoco_val2014 ' + "\\\\"
    rows = markdown_rows(text)
    assert rows[0] == ["", told]
    assert [row[0] for row in rows[2:]] == [f"{told} (baseline)", f"{told} 2", "↳ difference", told, "items"]
    assert f"{told}, {told}</summary>\n" in text
    assert f"to {told} in" in text
    assert set(re.findall("<[^>]*>?", text)) == {'<details markdown="1">', "</details>", "<summary>", "</summary>"}


# The plot in it


@pytest.mark.parametrize("suffix", [".md", ".html"])
def test_plot_is_linked_or_embedded(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "tables" / f"t{suffix}", tmp_path / "plots" / "a (sweep).png"
    write_table(save(tmp_path, sweep()), out, plot)
    assert len(np.unique(pixels(plot.read_bytes()).reshape(-1, 3), axis=0)) > 100
    text = out.read_text(encoding="utf-8")
    if suffix == ".md":
        assert re.findall(r"!\[[^]]+\]\((.*)\)", text) == ["../plots/a%20%28sweep%29.png"]
    else:
        (source,) = [told["src"] for tag, told in Tables(text).elements if tag == "img"]
        assert source is not None
        assert base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) == plot.read_bytes()


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    files = save(tmp_path, sweep())
    write_table(files, tmp_path / "t.md")
    with pytest.raises(MissingExtraError, match=re.escape(install_command("eval"))):
        write_table(files, tmp_path / "t.html", tmp_path / "p.png")
    assert not (tmp_path / "t.html").exists()


# Errors


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [[entry("base", BASE)], [entry("DRAFT", BASE[1:])]],
            r"1\.json: 'accuracy' of 'DRAFT' .* 5 items, .*0\.json it has 6",
        ),
        ([[entry("base", BASE, "", IMAGES), entry("DRAFT", BASE, "", [*IMAGES[:-1], 3])]], "by other images"),
        ([[entry("base", BASE, "", IMAGES), entry("DRAFT", BASE)]], "by other images"),
        ([[entry("DRAFT", BASE)]], "'base' has no entry in these files: add"),
        ([[]], r"0\.json: no entries"),
        ([], "No file: no entries"),
        (
            [[entry("base", BASE), entry("x", BASE)], [entry("x", BASE, "2", blend="weight", beta=0.5)]],
            r"'x' stands for different blends: no blend, beta None in .*0\.json, weight blend, beta 0\.5 in .*1\.json",
        ),
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, files: list[list[Entry]], message: str) -> None:
    out = tmp_path / "t.md"
    with pytest.raises(UsageError, match=message) as raised:
        write_table(save(tmp_path, *files), out)
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_references_that_differ(tmp_path: Path) -> None:
    (one,) = save(tmp_path, [entry("base", BASE)], references=[reference(0.3)])
    other = tmp_path / "other.json"
    Results(entries=[entry("base", BASE)], references=[reference(0.31)]).save(other)
    with pytest.raises(UsageError, match=r"other\.json: 'accuracy' of 'always yes' .* 0\.3100, .* 0\.3000"):
        pool([one, other])


@pytest.mark.parametrize(
    ("out", "plot", "message"),
    [
        ("t.csv", None, r"t\.csv: .* \.md or \.html, not as '\.csv'"),
        ("t", None, "not as 'a file without suffix'"),
        ("t.md", "p.pdf", r"p\.pdf: .* \.png, not as '\.pdf'"),
        ("t.md", "p.png", "Nothing to plot: these files compare no model with a baseline"),
        ("0.json/t.md", None, r"cannot write .*t\.md"),
    ],
)
def test_wrong_outputs(tmp_path: Path, out: str, plot: str | None, message: str) -> None:
    files = save(tmp_path, [entry("base", BASE)])
    with pytest.raises(DialogGenError, match=message):
        write_table(files, tmp_path / out, tmp_path / plot if plot else None)
    assert [file.name for file in tmp_path.iterdir()] == ["0.json"]
