"""`dialog-gen report` and `stats` as commands, and the page as a browser shows it."""

import base64
import hashlib
import html
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import Cli
from helpers.inputs import png
from helpers.pages import HOSTILE, Element, Page, gated_row, hostile_report, read, write_dataset
from helpers.progress import Heard
from helpers.rows import make_row, marks_of
from PIL import Image

import dialog_gen.inspect.page
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.inspect.page import ReportSummary
from dialog_gen.inspect.page import report as write_report
from dialog_gen.inspect.page.thumbnails import SIZES, fit, thumbnail

TEMPLATE = (Path(dialog_gen.inspect.page.__file__).parent / "page.html").read_text(encoding="utf-8")


def report(dataset: Path, out: Path, **settings: Any) -> ReportSummary:
    return write_report(dataset, out, **settings)


def test_the_summary_names_the_things_to_look_at(tmp_path: Path) -> None:
    """In one line each, with control characters of a model's answer as escapes."""
    texts = [{"user": f"What is {i}?", "assistant": "no\x1b[31m"} for i in range(10)]
    written = report(write_dataset(tmp_path / "d", [make_row(i, texts=texts) for i in range(12)]), tmp_path / "r.html")
    assert str(written).split("\n")[:-1] == [
        "All 12 images have a dialogue: 2 things to look at.",
        "  No quality gate was applied: `dialog-gen gate` scores and marks pairs.",
        "  100 % of the answers are “no\\x1b[31m”.",
    ]


# What is in the page


def test_the_page_holds_the_rows(tmp_path: Path) -> None:
    rows = [gated_row(i) for i in range(12)]
    rows[1] |= {"images": None}
    rows[2] |= {"images": [{"bytes": b"no image", "path": None}], "url": "https://example.org/a?b=c&d", "caption": None}
    rows[4] |= {"gates": None}
    written = report(write_dataset(tmp_path / "d", rows), tmp_path / "r.html")
    assert "\nall 12 images, 0.1 MB, thumbnails of 4 pixels and quality 95" in str(written)
    assert written.bytes == (tmp_path / "r.html").stat().st_size
    page = read(tmp_path / "r.html")
    shown = page.data["gallery"]
    assert (shown["seed"], shown["thumbnails"]) == (0, {"side": 4, "quality": 95})
    names = [gate["name"] for gate in page.side["gates"]]
    assert names == ["leak", "length"]
    assert len(page.rows) == 12
    for row, told in zip(rows, page.rows, strict=True):
        assert [told[name] for name in ("id", "caption", "url", "model")] == [
            row[name] for name in ("image_id", "caption", "url", "model")
        ]
        assert [{"user": pair["user"], "assistant": pair["assistant"]} for pair in told["pairs"]] == row["texts"]
        marked = [[names[mark] for mark in pair["marks"]] if "marks" in pair else None for pair in told["pairs"]]
        assert marked == (marks_of(row) or [None, None])
        assert row["gates"] is None or [pair["scores"] for pair in told["pairs"]] == [[0.875, 3], [0.25, 1]]
    assert [told["images"] for told in page.rows[1:3]] == [[], []]
    for number in (0, 11):
        with Image.open(io.BytesIO(base64.b64decode(page.rows[number]["images"][0].split(",")[1]))) as image:
            assert (image.format, image.size) == ("WEBP", (4, 4))
            assert np.abs(np.asarray(image.convert("RGB"), int) - (number, 0, 0)).max() < 8


def test_what_else_is_told(tmp_path: Path) -> None:
    rows = [gated_row(0), *(make_row(i, "rejected", raw=[f"{i}" * 3000], detail="why") for i in range(1, 9))]
    rows.append(make_row(9, "unreadable", raw=[]))
    config = {"model": "m", "protocol": "p", "images": str(tmp_path / "shapes" / "images" / "*.tar")}
    dataset = write_dataset(tmp_path / "d", rows, config)
    (dataset / "run.json").write_text(json.dumps({"run": {"images_per_second": 12.5}, "engine": {"version": "1.2"}}))
    (dataset / "gates.json").write_text(json.dumps({"settings": {"leak": {"min": None, "max": 0.5}}}))
    (tmp_path / "shapes").mkdir()
    rot: dict[str, Any] = {"urls": 10, "success_rate": 0.6, "alive": 0.7, "opted_out": 0}
    rot["outcomes"] = {"success": 6, "http_404": 3, "new": 1}
    (tmp_path / "shapes" / "link_rot.json").write_text(json.dumps(rot))
    report(dataset, tmp_path / "r.html")
    told = read(tmp_path / "r.html").side
    assert told["run"] == {"images_per_second": 12.5}
    assert told["config"] == {"model": "m", "protocol": "p"}
    assert [(gate["name"], gate.get("max")) for gate in told["gates"]] == [("leak", 0.5), ("length", None)]
    assert told["link_rot"] == {"urls": 10, "alive": 0.7, "outcomes": {"stored": 6, "not found": 3, "new": 1}}
    assert [(r["status"], r["reason"], r["count"], len(r["examples"])) for r in told["rejects"]] == [
        ("rejected", "too_few_pairs", 8, 4),
        ("unreadable", "truncated", 1, 1),
    ]
    examples = told["rejects"][0]["examples"]
    assert {example["raw"][0][1000:] for example in examples} == {" … [3,000 characters]"}
    assert {(example["detail"], len(example["images"])) for example in examples} == {("why", 1)}
    assert str(tmp_path) not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"settings": {"leak": {"max": "x"}}, "run": 3, "engine": [], "versions": 1}',
        '{"outcomes": 3}',
        '{"outcomes": {"a": "b"}, "urls": 1, "alive": 1}',
    ],
)
def test_other_files_of_these_names_are_left_alone(tmp_path: Path, content: str) -> None:
    dataset = write_dataset(tmp_path / "d", [make_row(0)], {"images": str(tmp_path / "images")})
    for file in (dataset / "run.json", dataset / "gates.json", tmp_path / "link_rot.json"):
        file.write_text(content)
    report(dataset, tmp_path / "r.html")
    assert read(tmp_path / "r.html").side["link_rot"] is None


def test_samples_are_drawn_and_the_same_again(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [make_row(i) for i in range(300)])
    written = [report(dataset, tmp_path / f"{i}.html", samples=50, seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, again, other = ((tmp_path / f"{i}.html").read_bytes() for i in range(3))
    assert first == again != other
    assert "\n50 of 300 images" in str(written[0])
    drawn = [row["id"] for row in read(tmp_path / "0.html").rows]
    assert len(set(drawn)) == 50
    assert len(set(drawn) & {row["id"] for row in read(tmp_path / "2.html").rows}) < 25


def noise(seed: int, size: tuple[int, int] = (360, 240)) -> bytes:
    """Coarse noise: about as hard to compress as a photo."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 45, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def test_thumbnails_adapt_to_the_budget(tmp_path: Path) -> None:
    rows = [make_row(i, images=[{"bytes": noise(i), "path": None}]) for i in range(10)]
    dataset = write_dataset(tmp_path / "d", rows)
    out = tmp_path / "r.html"
    sides: list[int] = []
    page_mb = report(write_dataset(tmp_path / "none", [r | {"images": None} for r in rows]), out).bytes / 1e6
    for images_mb in (20, 0.14, 0.08, 0.04):
        written = report(dataset, out, max_mb=page_mb + images_mb)
        assert out.stat().st_size == written.bytes <= (page_mb + images_mb) * 1e6
        assert written.thumbnails is not None
        sides.append(written.thumbnails.side)
        for row in read(out).rows:
            with Image.open(io.BytesIO(base64.b64decode(row["images"][0].split(",")[1]))) as image:
                assert image.width == min(360, sides[-1])
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 360 > sides[-1]
    out.unlink()
    with pytest.raises(UsageError, match=r"--max-mb .* is too little for 10 images: .* Give more, or fewer --samples"):
        report(dataset, out, max_mb=page_mb + 0.001)
    assert not out.exists()


def test_thumbnails_never_grow_and_keep_their_shape() -> None:
    assert thumbnail(b"no image") is None
    fitted = fit([thumbnail(png(1, (9, 3))) or b"", thumbnail(noise(0, (800, 20))) or b""], 10**6)
    assert fitted is not None
    made, size = fitted
    assert size == SIZES[0]
    assert [Image.open(io.BytesIO(data)).size for data in made] == [(9, 3), (640, 16)]


def test_a_thousand_samples(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [gated_row(i) for i in range(1100)])
    written = report(dataset, tmp_path / "r.html", samples=1000)
    assert (written.samples, written.of) == (1000, 1100)
    assert written.bytes < 2e6


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    """So that the size of a page does not depend on the length of texts."""
    long = [{"user": "q" * 10**6, "assistant": "\u202e" * 10**6}] * 60
    rows = [make_row(i, texts=long, caption="c" * 10**6) for i in range(3)]
    written = report(write_dataset(tmp_path / "d", rows), tmp_path / "r.html", max_mb=6)
    assert written.bytes < 6e6
    for row in read(tmp_path / "r.html").rows:
        assert (len(row["pairs"]), row["more"]) == (50, 10)
        for text in (row["caption"], row["pairs"][0]["user"], row["pairs"][0]["assistant"]):
            assert re.fullmatch(r"(.)\1{199,} … \[1,000,000 characters\]", text)


def test_images_that_occur_several_times(tmp_path: Path) -> None:
    """The largest groups come first, each with the dialogues of its first copies."""
    rows = [make_row(i, image_sha256=f"{max(i - 5, 0) // 2:064}") for i in range(12)]
    report(write_dataset(tmp_path / "d", rows), tmp_path / "r.html")
    told = read(tmp_path / "r.html").side["repeats"]
    assert [group["count"] for group in told] == [7, 2, 2]
    assert [[copy["id"] for copy in group["copies"]] for group in told] == [
        ["image 0", "image 1", "image 2"],
        ["image 7", "image 8"],
        ["image 9", "image 10"],
    ]
    assert [len(group["images"]) for group in told] == [1, 1, 1]


# Hostile data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_report(tmp_path_factory.mktemp("hostile"))


def test_nothing_of_the_data_is_markup(hostile: Path) -> None:
    source = hostile.read_text(encoding="utf-8")
    page = Page(source)
    assert not re.search(r"[<>&\u2028\u2029]", page.one("script", id="data").text)
    assert [e.attributes for e in page.all("script")] == [{"type": "application/json", "id": "data"}, {}]
    # The elements of page.html, and no other.
    assert Counter(e.tag for e in page.elements) == Counter(re.findall(r"<([a-z]\w*)", TEMPLATE))
    assert not [
        name for e in page.elements for name in e.attributes if name.startswith("on") or name in ("src", "href")
    ]
    assert (page.one("title").text, page.one("h1").text) == ("<b>title<!--",) * 2
    assert [(row["caption"], row["url"], row["pairs"][0]["user"]) for row in page.rows] == [
        (text,) * 3 for text in HOSTILE
    ]


def test_the_policy_allows_this_style_and_script_alone(hostile: Path) -> None:
    page = read(hostile)
    (meta,) = (e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in (meta.attributes["content"] or "").split("; "))

    def source(element: Element) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": source(page.one("style")),
        "script-src": source(page.all("script")[1]),
        "require-trusted-types-for": "'script'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # Nothing else could fetch anything, either.
    assert not re.search(r"@import|url\(|innerHTML|insertAdjacent|document\.write|eval\(", page.source)


# Commands


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "d", [gated_row(i) for i in range(9)])
    code, out, err = dialog_gen_cli("report", "d", "--out", "new/folder/r.html", "--samples", "5")
    assert (code, err) == (0, "")
    assert (
        out.splitlines()[0] == "All 9 images have a dialogue, the gates keep 83.3 % of 18 pairs: one thing to look at."
    )
    assert out.splitlines()[1] == "  Gates mark 16.7 % of the pairs; “leak” marks the most, 16.7 %."
    assert out.splitlines()[2].startswith("5 of 9 images, ")
    assert out.splitlines()[-1] == "new/folder/r.html"
    assert [file.name for file in (tmp_path / "new/folder").iterdir()] == ["r.html"]
    code, out, err = dialog_gen_cli("stats", "d")
    assert (code, err) == (0, "")
    assert out.startswith("d: 9 images in 1 shard,")
    code, out, err = dialog_gen_cli("stats", "d", "--json")
    assert (code, json.loads(out)["gates"]["leak"]["marked"]) == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stats", "nowhere"), ["nowhere does not exist", "dialog-gen run --out"]),
        (("report", "nowhere", "--out", "r.html"), ["nowhere does not exist"]),
        (("report", "d", "--out", "d"), ["--out d is a folder: name a file, such as d/report.html"]),
        (("report", "d", "--out", "file/r.html"), ["--out file/r.html cannot be written", "file is no folder"]),
        (("report", "d", "--out", "r.html", "--max-mb", "0.1"), ["--max-mb 0.1 is too little for 40 images"]),
        (("stats", "damaged"), ["damaged/data/s0.parquet cannot be read", "repair"]),
        (("report", "damaged", "--out", "r.html"), ["damaged/data/s0.parquet cannot be read"]),
        (("stats", "cut"), ["cut/shards/s0.json is damaged"]),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli, arguments: tuple[str, ...], said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("d", "damaged", "cut"):
        write_dataset(tmp_path / name, [make_row(i, caption="<" * 20_000) for i in range(40)])
    (tmp_path / "damaged" / "data" / "s0.parquet").write_bytes(b"PAR1" * 9)
    (tmp_path / "cut" / "shards" / "s0.json").write_text('{"shard"')
    code, out, err = dialog_gen_cli(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert [part for part in said if part not in err] == []
    assert not (tmp_path / "r.html").exists()


def test_a_report_replaces_another_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.html"
    out.write_text("before")
    dataset = write_dataset(tmp_path / "d", [make_row(0)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DialogGenError, match="No space left"):
            report(dataset, out)
    assert out.read_text() == "before"
    report(dataset, out)
    assert html.unescape(read(out).one("title").text) == "d"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d", "r.html"]


def test_progress(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [make_row(i) for i in range(9)])
    heard = Heard()
    summary = write_report(str(dataset), str(tmp_path / "r.html"), samples=5, on_progress=heard)
    assert heard.ends() == {"reading shards": (1, 1), "drawing images": (5, 5)}
    assert write_report(DatasetFolder(str(dataset)), tmp_path / "again.html", samples=5).bytes == summary.bytes
