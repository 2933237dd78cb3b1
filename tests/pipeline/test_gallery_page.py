"""`dialog-gen report` and `stats` as commands, and the page as a browser shows it."""

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from helpers.cli import Cli
from helpers.inputs import png
from helpers.progress import Heard
from helpers.rows import gates_of, make_row, marks_of, shard_of, write_shard
from PIL import Image

import dialog_gen.inspect.page
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.writer import open_writer
from dialog_gen.inspect.page import ReportSummary
from dialog_gen.inspect.page import report as write_report
from dialog_gen.inspect.page.thumbnails import SIZES, fit, thumbnail

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")

TEMPLATE = (Path(dialog_gen.inspect.page.__file__).parent / "page.html").read_text(encoding="utf-8")
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!--<script>",
    "]]>&lt;b&gt;&amp;&#60;i&#62;",
    "javascript:document.title='owned'",
    "' onmouseover='document.title=1' x='\"",
    "\u202eright to left\u202c \u200f\u2066",
    r"\ud800 \u003cb\u003e \x3cb\x3e ${document.title='owned'} {{7*7}} $data",
    "a\u2028b\u2029c",
    "__proto__",
)  # fmt: skip


def write_dataset(out: Path, rows: list[dict[str, Any]], config: dict[str, Any] | None = None) -> Path:
    with open_writer(str(out), config or {"model": "m"}) as store:
        write_shard(store, shard_of("s0", len(rows)), rows)
    return out


def report(dataset: Path, out: Path, **settings: Any) -> ReportSummary:
    return write_report(dataset, out, **settings)


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """The elements of a page, each with all the text in it."""

    source: str
    elements: list[Element] = field(default_factory=list[Element])

    VOID = ("meta", "img", "input", "link", "br")

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[Element] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = attributes.items()
        return [
            e for e in self.elements if e.tag == tag and all(e.attributes.get(n.strip("_")) == v for n, v in wanted)
        ]

    def one(self, tag: str, **attributes: str) -> Element:
        (element,) = self.all(tag, **attributes)
        return element

    @property
    def data(self) -> Any:
        return json.loads(self.one("script", id="data").text)

    @property
    def cards(self) -> list[str | None]:
        return [e.attributes["data-id"] for e in self.all("article") if "data-id" in e.attributes]


def read(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def browse(file: Path, fragment: str = "") -> Page:
    """The page after its script has run; anything the browser objects to fails."""
    assert CHROMIUM is not None
    with_profile = f"--user-data-dir={file.parent / 'profile'}"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", with_profile]
    command += ["--virtual-time-budget=10000", "--dump-dom", f"{file.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert re.findall(r"CONSOLE.*", done.stderr.decode(errors="replace")) == []
    return Page(done.stdout.decode())


def gated_row(number: int) -> dict[str, Any]:
    """Marked by `leak` where the number is 0 mod 3, by `length` too where it is 0 mod 6."""
    against = [["leak"], ["leak", "length"]][number % 6 == 0] if number % 3 == 0 else []
    texts = [{"user": f"What is {number}?", "assistant": "A Yellow (square)."}, {"user": "Is it?", "assistant": "Yes"}]
    gates = gates_of([against, []], leak=[0.875, 0.25], length=[3.0, 1.0])
    return make_row(number, texts=texts, gates=gates)


# What is in the page


def test_the_page_holds_the_rows(tmp_path: Path) -> None:
    rows = [gated_row(i) for i in range(12)]
    rows[1] |= {"images": None}
    rows[2] |= {"images": [{"bytes": b"no image", "path": None}], "url": "https://example.org/a?b=c&d", "caption": None}
    rows[4] |= {"gates": None}
    written = report(write_dataset(tmp_path / "d", rows), tmp_path / "r.html")
    assert str(written).startswith("all 12 images, 0.0 MB, thumbnails of 320 pixels and quality 80")
    assert written.bytes == (tmp_path / "r.html").stat().st_size
    shown = read(tmp_path / "r.html").data["gallery"]
    assert (shown["seed"], shown["thumbnails"]) == (0, {"side": 320, "quality": 80})
    assert len(shown["rows"]) == 12
    for row, told in zip(rows, shown["rows"], strict=True):
        assert [told[name] for name in ("id", "caption", "url", "model")] == [
            row[name] for name in ("image_id", "caption", "url", "model")
        ]
        assert [{"user": pair["user"], "assistant": pair["assistant"]} for pair in told["pairs"]] == row["texts"]
        score = {"leak": 0.875, "length": 3}
        marks = [{name: score[name] for name in against} for against in marks_of(row) or ()]
        assert [pair.get("marks") for pair in told["pairs"]] == (marks or [None, None])
    assert [told["image"] for told in shown["rows"][1:3]] == [None, None]
    for number in (0, 11):
        with Image.open(io.BytesIO(base64.b64decode(shown["rows"][number]["image"].split(",")[1]))) as image:
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
    rot = {"urls": 10, "success_rate": 0.6, "alive": 0.7, "opted_out": 0}
    rot["outcomes"] = {"success": 6, "http_404": 3, "new": 1}
    (tmp_path / "shapes" / "link_rot.json").write_text(json.dumps(rot))
    report(dataset, tmp_path / "r.html")
    told = read(tmp_path / "r.html").data
    assert told["run"] == {"images_per_second": 12.5}
    assert told["config"] == {"model": "m", "protocol": "p"}
    assert [told["gates"][name].get("max") for name in ("leak", "length")] == [0.5, None]
    assert told["link_rot"] == {"urls": 10, "alive": 0.7, "outcomes": {"stored": 6, "not found": 3, "new": 1}}
    assert [(r["status"], r["reason"], r["count"], len(r["examples"])) for r in told["rejects"]] == [
        ("rejected", "too_few_pairs", 8, 3),
        ("unreadable", "truncated", 1, 1),
    ]
    assert {len(example["raw"][0]) for example in told["rejects"][0]["examples"]} == {2000}
    assert str(tmp_path) not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"outcomes": 3}', '{"outcomes": {"a": "b"}, "urls": 1, "alive": 1}']
)
def test_other_files_of_these_names_are_left_alone(tmp_path: Path, content: str) -> None:
    dataset = write_dataset(tmp_path / "d", [make_row(0)], {"images": str(tmp_path / "images")})
    for file in (dataset / "run.json", dataset / "gates.json", tmp_path / "link_rot.json"):
        file.write_text(content)
    report(dataset, tmp_path / "r.html")
    assert read(tmp_path / "r.html").data["link_rot"] is None


def test_samples_are_drawn_and_the_same_again(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [make_row(i) for i in range(300)])
    written = [report(dataset, tmp_path / f"{i}.html", samples=50, seed=seed) for i, seed in enumerate((0, 0, 1))]
    first, again, other = ((tmp_path / f"{i}.html").read_bytes() for i in range(3))
    assert first == again != other
    assert str(written[0]).startswith("50 of 300 images")
    drawn = [row["id"] for row in read(tmp_path / "0.html").data["gallery"]["rows"]]
    assert len(set(drawn)) == 50
    assert len(set(drawn) & {row["id"] for row in read(tmp_path / "2.html").data["gallery"]["rows"]}) < 25


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
    for max_mb in (20, 0.14, 0.08, 0.05):
        written = report(dataset, out, max_mb=max_mb)
        assert out.stat().st_size == written.bytes <= max_mb * 1e6
        assert written.thumbnails is not None
        sides.append(written.thumbnails.side)
        for row in read(out).data["gallery"]["rows"]:
            with Image.open(io.BytesIO(base64.b64decode(row["image"].split(",")[1]))) as image:
                assert image.width == sides[-1]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 320 > sides[-1]
    out.unlink()
    with pytest.raises(
        UsageError, match=r"--max-mb 0.04 is too little for 10 images: .* Give more, or fewer --samples"
    ):
        report(dataset, out, max_mb=0.04)
    assert not out.exists()


def test_thumbnails_never_grow_and_keep_their_shape() -> None:
    assert thumbnail(b"no image") is None
    fitted = fit([thumbnail(png(1, (9, 3))), None, thumbnail(noise(0, (800, 20)))], 10**6)
    assert fitted is not None
    made, size = fitted
    assert size == SIZES[0]
    assert [data and Image.open(io.BytesIO(data)).size for data in made] == [(9, 3), None, (320, 8)]


def test_a_thousand_samples(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [gated_row(i) for i in range(1100)])
    written = report(dataset, tmp_path / "r.html", samples=1000)
    assert (written.samples, written.of) == (1000, 1100)
    assert written.bytes < 2e6


# Hostile data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every text that comes from outside is hostile, and so are the names of files."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        make_row(
            i,
            image_id=f"{i} {text}",
            url=text,
            caption=text,
            model=text,
            protocol=text,
            texts=[{"user": text, "assistant": text}],
            gates=gates_of([["leak", text]], leak=[0.5]),
        )
        for i, text in enumerate(HOSTILE)
    ]
    rows += [
        make_row(100 + i, "rejected", image_id=f"lost {i}", reason=text, detail=text, raw=[text])
        for i, text in enumerate(HOSTILE)
    ]
    everything = "".join(HOSTILE)
    config = {"model": everything, "protocol": everything, "images": str(folder / "images"), "dtype": everything}
    dataset = write_dataset(folder / "<b>title<!--", rows, config)
    run = {"finished_at": everything, "versions": {everything: everything, "\ud800": "\udfff"}}
    (dataset / "run.json").write_text(json.dumps(run))
    rot = {"urls": 1, "alive": 1, "outcomes": dict.fromkeys(HOSTILE, 1)}
    (folder / "link_rot.json").write_text(json.dumps(rot))
    report(dataset, folder / "r.html")
    return folder / "r.html"


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
    shown = page.data["gallery"]["rows"]
    assert [(row["caption"], row["url"], row["pairs"][0]["user"]) for row in shown] == [(text,) * 3 for text in HOSTILE]


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


@in_browser
def test_a_browser_shows_hostile_data_as_text(hostile: Path) -> None:
    page = browse(hostile)
    assert page.one("title").text == "<b>title<!--"
    assert len(page.all("script")) == 2
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    assert {(e.attributes["src"] or "").split(",")[0] for e in page.all("img")} == {"data:image/webp;base64"}
    assert all((e.attributes["href"] or "").startswith("#") for e in page.all("a"))
    assert len(page.cards) == len(HOSTILE)
    shown = [e.text for e in page.all("p", class_="text caption")]
    assert shown == list(HOSTILE)
    assert sorted(e.text for e in page.all("pre")) == sorted(HOSTILE)


@in_browser
def test_only_web_addresses_are_links(tmp_path: Path) -> None:
    urls = [
        "https://example.org/a?b=1&c=%22",
        "http://example.org/'\"<b>",
        "javascript:alert(1)",
        " JaVaScRiPt:alert(1)",
        "data:text/html,<script>1</script>",
        "file:///etc/passwd",
        "//example.org/x",
        "ftp://example.org",
        "",
    ]
    report(write_dataset(tmp_path / "d", [make_row(i, url=url) for i, url in enumerate(urls)]), tmp_path / "r.html")
    page = browse(tmp_path / "r.html")
    links = [e for e in page.all("a") if not (e.attributes["href"] or "").startswith("#")]
    assert [e.attributes["href"] for e in links] == urls[:2]
    assert {e.attributes["rel"] for e in links} == {"noopener noreferrer"}
    assert all(url in page.one("div", id="cards").text for url in urls)


# The gallery in a browser


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, 20 with a marked pair, 10 of those marked twice."""
    folder = tmp_path_factory.mktemp("gallery")
    rows = [gated_row(i) for i in range(60)]
    rows[7]["caption"] = "A RED balloon (1.5 m)"
    rows[50] |= {"image_id": "00001/00%2F&q=x #50", "images": None}
    report(write_dataset(folder / "d", rows), folder / "r.html")
    return folder / "r.html"


@in_browser
@pytest.mark.parametrize(
    ("fragment", "found", "page", "cards"),
    [
        ("", "60 images", "1 / 3", range(24)),
        ("#q=yellow&gate=length&page=9", "10 of 60 images", "1 / 1", range(0, 60, 6)),
        (f"#gate=leak&page=2&image={quote('00001/00%2F&q=x #50', safe='')}", "60 images", "3 / 3", range(48, 60)),
        ("#image=%3Cb%3E", "0 of 60 images", "1 / 1", range(0)),
    ],
)
def test_the_fragment_says_what_is_shown(gallery: Path, fragment: str, found: str, page: str, cards: range) -> None:
    shown = browse(gallery, fragment)
    assert shown.one("span", id="found").text == found
    assert shown.one("span", id="page").text == page
    names = [f"image {i}" if i != 50 else "00001/00%2F&q=x #50" for i in cards]
    assert shown.cards == names
    targets = [e.attributes["data-id"] for e in shown.all("article", class_="card target")]
    assert targets == (["00001/00%2F&q=x #50"] if "50" in fragment else [])
    if not names:
        assert shown.one("p", class_="nothing").text == "“<b>” is not among the 60 images shown here."
    if "q=yellow" in fragment:
        assert {e.text for e in shown.all("mark")} == {"Yellow"}
        assert [e.text for e in shown.all("span", class_="chip")] == ["leak 0.88", "length 3"] * 10


# What a reader does, one after the other -> what is shown then: found, page, first card, fragment
STEPS = [
    ("click('next')", ["60 images", "2 / 3", "image 24", "#page=2"]),
    ("key('ArrowRight')", ["60 images", "3 / 3", "image 48", "#page=3"]),
    ("key('ArrowRight')", ["60 images", "3 / 3", "image 48", "#page=3"]),
    ("key('ArrowLeft')", ["60 images", "2 / 3", "image 24", "#page=2"]),
    ("set('search', 'input', ' red  BALL(')", ["0 of 60 images", "1 / 1", None, "#q=+red++BALL%28"]),
    ("set('search', 'input', '(1.5 red')", ["1 of 60 images", "1 / 1", "image 7", "#q=%281.5+red"]),
    ("set('search', 'input', 'square')", ["60 images", "1 / 3", "image 0", "#q=square"]),
    ("set('show', 'change', 'marked')", ["20 of 60 images", "1 / 1", "image 0", "#q=square&show=marked"]),
    ("set('show', 'change', 'kept')", ["40 of 60 images", "1 / 2", "image 1", "#q=square&show=kept"]),
    ("set('gate', 'change', 'leak')", ["0 of 60 images", "1 / 1", None, "#q=square&show=kept&gate=leak"]),
    ("click('clear')", ["60 images", "1 / 3", "image 0", "#"]),
    ("location.hash = '#image=image%2030'", ["60 images", "2 / 3", "image 24", "#image=image%2030"]),
    ("click('next')", ["60 images", "3 / 3", "image 48", "#page=3"]),
    ("location.hash = '#gates'", ["60 images", "3 / 3", "image 48", "#gates"]),
    ("key('/')", ["60 images", "3 / 3", "image 48", "#gates"]),
]
DRIVER = """
const click = (id) => document.getElementById(id).click();
const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const set = (id, event, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event(event));
};
(async () => {
  const shown = [];
  for (const step of STEPS) {
    step();
    await new Promise((resolve) => setTimeout(resolve, 50));
    const text = (id) => document.getElementById(id).textContent;
    const first = document.querySelector(".card")?.dataset.id ?? null;
    shown.push([text("found"), text("page"), first, location.hash || "#"]);
  }
  const log = document.createElement("pre");
  log.id = "log";
  log.textContent = JSON.stringify([shown, document.activeElement.id]);
  document.body.append(log);
})();
"""


@in_browser
def test_what_a_reader_does(gallery: Path, tmp_path: Path) -> None:
    source = gallery.read_text(encoding="utf-8")
    # The policy would not let this test's script run.
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    steps = ",".join(f"() => {step}" for step, _ in STEPS)
    driven = tmp_path / "driven.html"
    driven.write_text(source.replace("</body>", f"<script>{DRIVER.replace('STEPS', f'[{steps}]')}</script></body>"))
    shown, focused = json.loads(browse(driven).one("pre", id="log").text)
    assert [[step, seen] for (step, _), seen in zip(STEPS, shown, strict=True)] == [list(step) for step in STEPS]
    assert focused == "search"


@in_browser
def test_the_most_frequent_stands_first(tmp_path: Path) -> None:
    """Also before answers that are numbers, which JavaScript would put first."""
    texts = [{"user": "How many?", "assistant": answer} for answer in ("no", "3", "no", "1", "no", "3")]
    report(write_dataset(tmp_path / "d", [make_row(0, texts=texts)]), tmp_path / "r.html")
    told = [e.text for e in browse(tmp_path / "r.html").all("dt")]
    assert [name for name in told if name in ("no", "3", "1")] == ["no", "3", "1"]


@in_browser
def test_an_empty_dataset(tmp_path: Path) -> None:
    written = report(write_dataset(tmp_path / "d", [make_row(0, "rejected")]), tmp_path / "r.html")
    assert "no image with a dialogue" in str(written)
    page = browse(tmp_path / "r.html")
    assert page.one("p", class_="nothing").text == "There is no dialogue in this dataset."
    assert "hidden" in (page.one("section", id="texts").attributes["class"] or "")


# Commands


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "d", [gated_row(i) for i in range(9)])
    code, out, err = dialog_gen_cli("report", "d", "--out", "new/folder/r.html", "--samples", "5")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("5 of 9 images, ")
    assert out.splitlines()[-1] == "new/folder/r.html"
    assert [file.name for file in (tmp_path / "new/folder").iterdir()] == ["r.html"]
    code, out, err = dialog_gen_cli("stats", "d")
    assert (code, err) == (0, "")
    assert out.startswith("d: 9 images in 1 shards")
    code, out, err = dialog_gen_cli("stats", "d", "--json")
    assert (code, json.loads(out)["gates"]["leak"]["marked"]) == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stats", "nowhere"), ["nowhere does not exist", "dialog-gen run --out"]),
        (("report", "nowhere", "--out", "r.html"), ["nowhere does not exist"]),
        (("report", "d", "--out", "d"), ["--out d is a folder: name a file, such as d/report.html"]),
        (("report", "d", "--out", "file/r.html"), ["--out file/r.html cannot be written", "file is no folder"]),
        (("report", "d", "--out", "r.html", "--max-mb", "0.1"), ["--max-mb 0.1 is too little for 9 images"]),
        (("stats", "damaged"), ["damaged/data/s0.parquet cannot be read", "verify"]),
        (("report", "damaged", "--out", "r.html"), ["damaged/data/s0.parquet cannot be read"]),
        (("stats", "cut"), ["cut: shards/s0.json is damaged"]),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli, arguments: tuple[str, ...], said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("d", "damaged", "cut"):
        write_dataset(tmp_path / name, [make_row(i, caption="c" * 20_000) for i in range(9)])
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
