"""The report as a browser shows it, and what its reader does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers.browser import Browser, browser, in_browser
from helpers.inputs import png
from helpers.pages import HOSTILE, Page, gated_row, hostile_report, write_dataset
from helpers.rows import gates_of, make_row

from dialog_gen.inspect.page import report

pytestmark = in_browser
SHOWN = """[document.getElementById('found').innerText, document.getElementById('page').innerText,
    document.querySelector('.card')?.dataset.id ?? null, location.hash || '#']"""
ODD_ID = "00001/00%2F&q=x #50"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as reader:
        yield reader


@pytest.fixture(autouse=True)
def nothing_wrong(reader: Browser) -> Iterator[None]:
    """In no test does the page fetch anything but itself, or does the browser object to anything."""
    reader.problems.clear()
    yield
    assert reader.problems == []
    assert {address.split("#")[0].rsplit("/", 1)[-1] for address in reader.requests} <= {"r.html"}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images, 20 with a marked pair, 10 of those marked twice."""
    folder = tmp_path_factory.mktemp("gallery")
    rows = [gated_row(i) for i in range(60)]
    rows[7]["caption"] = "A RED balloon (1.5 m)"
    rows[50] |= {"image_id": ODD_ID, "images": None}
    rows[33]["texts"][1] = {"user": "Is it?", "assistant": "Yes, and this is the longest of all the answers."}
    rows[41]["gates"] = gates_of([["leak"], []], leak=[0.999, 0.25], length=[-2.0, 1.0])
    report(write_dataset(folder / "d", rows), folder / "r.html")
    return folder / "r.html"


def dom(reader: Browser) -> Page:
    return Page(reader.value("document.documentElement.outerHTML"))


def cards(reader: Browser) -> list[str]:
    return reader.value("[...document.querySelectorAll('.card')].map((card) => card.dataset.id)")


# Hostile data


def test_hostile_data_is_text(reader: Browser, tmp_path: Path) -> None:
    reader.open(hostile_report(tmp_path))
    page = dom(reader)
    assert page.one("title").text == "<b>title<!--"
    assert len(page.all("script")) == 2
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    assert {(e.attributes["src"] or "").split(",")[0] for e in page.all("img")} == {"data:image/webp;base64"}
    assert all((e.attributes["href"] or "").startswith("#") for e in page.all("a"))
    assert len(page.cards) == len(HOSTILE)
    assert [e.text for e in page.all("p", class_="text caption")] == list(HOSTILE)
    assert sorted(e.text for e in page.all("pre")) == sorted(HOSTILE)
    for number in range(len(HOSTILE)):
        reader.click(f".card:nth-child({number + 1}) .picture")
        assert reader.value("document.querySelector('#zoom .caption').textContent") == HOSTILE[number]
        reader.press("Escape")
    assert reader.value("document.title") == "<b>title<!--"


def test_only_web_addresses_are_links(reader: Browser, tmp_path: Path) -> None:
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
    reader.open(tmp_path / "r.html")
    page = dom(reader)
    links = [e for e in page.all("a") if not (e.attributes["href"] or "").startswith("#")]
    assert [e.attributes["href"] for e in links] == urls[:2]
    assert {e.attributes["rel"] for e in links} == {"noopener noreferrer"}
    assert all(url in page.one("div", id="cards").text for url in urls)


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_in_colours_that_can_be_read(
    reader: Browser, gallery: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    """Nothing is wider than the window, not even words of a megabyte; text stands out from its background."""
    long = make_row(0, texts=[{"user": "W" * 10**6, "assistant": "V" * 10**6}], caption="c" * 10**6, image_id="i" * 999)
    report(write_dataset(tmp_path / "d", [long]), tmp_path / "r.html")
    for page in (gallery, tmp_path / "r.html"):
        reader.open(page, width=width, dark=dark)
        assert reader.value("document.documentElement.scrollWidth") <= width
        ends = "[...document.querySelectorAll('#contents a')].map((link) => link.getBoundingClientRect().right)"
        assert max(reader.value(ends)) <= width
    colours = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    text, paper = (sum(map(int, colour[4:-1].split(","))) for colour in reader.value(colours))
    assert (text - paper > 500) if dark else (paper - text > 500)


# What is said first


def test_the_top(reader: Browser, gallery: Path) -> None:
    reader.open(gallery)
    verdict = "All 60 images have a dialogue, the gates keep 82.5 % of 120 pairs: 2 things to look at."
    assert reader.text("#verdict").replace("\xa0", " ") == verdict
    assert [said.removesuffix(" look") for said in reader.texts("#findings li")] == [
        "Gates mark 17.5 % of the pairs; “leak” marks the most, 17.5 %.",
        "50.0 % of the answers are “a yellow (square)”.",
    ]
    assert [value.replace("\xa0", " ") for value in reader.texts("#numbers .value")] == ["60", "120", "82.5 %", "61"]


# The gallery


@pytest.mark.parametrize(
    ("fragment", "found", "page", "shown"),
    [
        ("", "60 images", "1 / 5", range(12)),
        ("#q=yellow&gate=length&page=9", "10 of 60 images", "1 / 1", range(0, 60, 6)),
        (f"#gate=leak&page=2&image={quote(ODD_ID, safe='')}", "60 images", "5 / 5", range(48, 60)),
        ("#image=%3Cb%3E", "0 of 60 images", "1 / 1", range(0)),
        ("#show=__proto__&sort=constructor", "60 images", "1 / 5", range(12)),
    ],
)
def test_the_fragment_says_what_is_shown(
    reader: Browser, gallery: Path, fragment: str, found: str, page: str, shown: range
) -> None:
    reader.open(gallery, fragment)
    assert reader.value(SHOWN)[:2] == [found, page]
    names = [f"image {i}" if i != 50 else ODD_ID for i in shown]
    assert cards(reader) == names
    targets = reader.value("[...document.querySelectorAll('.card.target')].map((card) => card.dataset.id)")
    assert targets == ([ODD_ID] if "50" in fragment else [])
    if not names:
        assert reader.text(".nothing") == "“<b>” is not among the 60 images shown here."
    if "q=yellow" in fragment:
        assert set(reader.texts("mark")) == {"Yellow"}
        assert reader.texts(".chip") == ["leak 0.88", "length 3"] * 10


def test_what_a_reader_does(reader: Browser, gallery: Path) -> None:
    def search(text: str) -> None:
        reader.value("document.getElementById('search').select()")
        reader.press("/")
        reader.value("document.getElementById('search').select()")
        reader.type(text)

    steps: list[tuple[Any, list[str | None]]] = [
        (lambda: reader.click("#next"), ["60 images", "2 / 5", "image 12", "#page=2"]),
        (lambda: reader.press("ArrowRight"), ["60 images", "3 / 5", "image 24", "#page=3"]),
        (lambda: reader.press("ArrowLeft"), ["60 images", "2 / 5", "image 12", "#page=2"]),
        (lambda: search(" red  BALL("), ["0 of 60 images", "1 / 1", None, "#q=+red++BALL%28"]),
        (lambda: search("(1.5 red"), ["1 of 60 images", "1 / 1", "image 7", "#q=%281.5+red"]),
        (lambda: reader.press("ArrowRight"), ["1 of 60 images", "1 / 1", "image 7", "#q=%281.5+red"]),
        (lambda: reader.press("Escape"), ["60 images", "1 / 5", "image 0", "#"]),
        (lambda: search("square"), ["60 images", "1 / 5", "image 0", "#q=square"]),
        (lambda: reader.choose("#show", "marked"), ["21 of 60 images", "1 / 2", "image 0", "#q=square&show=marked"]),
        (lambda: reader.choose("#show", "kept"), ["39 of 60 images", "1 / 4", "image 1", "#q=square&show=kept"]),
        (lambda: reader.choose("#gate", "leak"), ["0 of 60 images", "1 / 1", None, "#q=square&show=kept&gate=leak"]),
        (lambda: reader.click("#clear"), ["60 images", "1 / 5", "image 0", "#"]),
        (lambda: reader.click(".card:nth-child(3) footer a"), ["60 images", "1 / 5", "image 0", "#image=image%202"]),
        (lambda: reader.click("#next"), ["60 images", "2 / 5", "image 12", "#page=2"]),
        (lambda: reader.click("#contents a:nth-child(3)"), ["60 images", "2 / 5", "image 12", "#gates"]),
    ]
    reader.open(gallery)
    for number, (step, shown) in enumerate(steps):
        step()
        assert (number, reader.value(SHOWN)) == (number, shown)


def test_sorting(reader: Browser, gallery: Path) -> None:
    reader.open(gallery)
    for order, first in (
        ("marked", ["image 0", "image 6", "image 12"]),
        ("longest", ["image 33", "image 0", "image 1"]),
        ("lowest length", ["image 41", "image 0", "image 1"]),
        ("lowest leak", ["image 0", "image 1", "image 2"]),
    ):
        reader.choose("#sort", order)
        assert cards(reader)[:3] == first, order
        assert reader.value(SHOWN)[:2] == ["60 images", "1 / 5"]
    reader.choose("#gate", "leak")
    reader.choose("#sort", "lowest length")
    assert cards(reader)[0] == "image 41"


def test_shuffling(reader: Browser, gallery: Path) -> None:
    """Each time another order, which the link repeats, of all images."""
    reader.open(gallery)
    seen: list[list[str]] = []
    for _ in range(2):
        reader.click("#shuffle")
        order: list[str] = []
        for page in range(5):
            order += cards(reader)
            if page < 4:
                reader.click("#next")
        assert sorted(order) == sorted([f"image {i}" for i in range(60) if i != 50] + [ODD_ID])
        seen.append(order)
    assert seen[0] != seen[1]
    assert sorted(seen[0]) != seen[0]
    reader.open(gallery, "#sort=shuffle+1")
    assert cards(reader) == seen[0][:12]


def test_enlarging(reader: Browser, gallery: Path) -> None:
    """With all scores; arrows go through the images that match, over the ends of pages; Esc closes."""
    reader.open(gallery, "#show=marked")
    reader.click(".card:nth-child(12) .picture")
    zoom = "document.getElementById('zoom')"
    assert reader.value(f"{zoom}.open")
    assert reader.text("#zoom .bar-of-zoom span") == "12 of 21"
    size = reader.value("document.querySelector('#zoom img').getBoundingClientRect().height")
    assert size > 400
    assert "image 33" in reader.text("#zoom footer")
    assert reader.texts("#zoom .chip") == ["leak 0.88"]
    assert reader.texts("#zoom .score") == ["length 3", "leak 0.25", "length 1"]
    reader.press("ArrowRight")
    assert reader.text("#zoom .bar-of-zoom span") == "13 of 21"
    assert "image 36" in reader.text("#zoom footer")
    reader.click("#zoom [aria-label='Previous image']")
    assert "image 33" in reader.text("#zoom footer")
    reader.press("Escape")
    reader.wait(f"!{zoom}.open")
    assert reader.value(SHOWN) == ["21 of 60 images", "1 / 2", "image 0", "#show=marked"]
    assert reader.value("document.activeElement.closest('.card').dataset.id") == "image 33"


# Charts


def test_the_most_frequent_stands_first(reader: Browser, tmp_path: Path) -> None:
    """Also before answers that are numbers, which JavaScript would put first."""
    texts = [{"user": "How many?", "assistant": answer} for answer in ("no", "3", "no", "1", "no", "3")]
    report(write_dataset(tmp_path / "d", [make_row(0, texts=texts)]), tmp_path / "r.html")
    reader.open(tmp_path / "r.html")
    assert [name for name in reader.texts(".bars dt") if name in ("no", "3", "1")] == ["no", "3", "1"]
    assert reader.texts(".by-question .split > span") == ["no", "3", "1"]
    assert reader.text(".by-question tbody td") == "6"


def test_histograms_have_axes_and_the_limits_of_gates(reader: Browser, tmp_path: Path) -> None:
    """A limit stands where its value is; what has one value is a sentence."""
    scores = [n / 100 for n in range(101)]
    rows = [
        make_row(i, gates=gates_of([["leak"] if score > 0.9 else []], leak=[score], length=[1.0], logprob=[score - 99]))
        for i, score in enumerate(scores)
    ]
    out = write_dataset(tmp_path / "d", rows)
    (out / "gates.json").write_text(
        '{"settings": {"leak": {"max": 0.9}, "length": {"min": 1, "max": 60}, "logprob": {"min": -2}}}'
    )
    report(out, tmp_path / "r.html")
    reader.open(tmp_path / "r.html")
    leak, length, logprob = (f".gate:nth-child({place})" for place in (1, 2, 3))
    assert reader.texts(f"{length} .sentence") == ["All 101 scores are 1."]
    assert reader.texts(f"{leak} .tick") == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert reader.texts(f"{leak} .limit") == ["max 0.9"]

    def left(selector: str) -> float:
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        return reader.value(f"(({{ x, width }}) => x + width / 2)({box})")

    tick = {name: left(f"{leak} .tick:nth-child({place})") for place, name in ((1, 0.0), (6, 1.0))}
    assert left(f"{leak} .limit") == pytest.approx(tick[0.0] + 0.9 * (tick[1.0] - tick[0.0]), abs=2)
    assert reader.texts(f"{logprob} .limit") == ["→ min -2"]


def test_an_empty_dataset(reader: Browser, tmp_path: Path) -> None:
    written = report(write_dataset(tmp_path / "d", [make_row(0, "rejected")]), tmp_path / "r.html")
    assert "no image with a dialogue" in str(written)
    reader.open(tmp_path / "r.html")
    assert reader.text(".nothing") == "There is no dialogue in this dataset."
    assert "hidden" in (dom(reader).one("section", id="texts").attributes["class"] or "")


def test_rejected_images_with_raw_texts_and_duplicates(reader: Browser, tmp_path: Path) -> None:
    rows = [make_row(i, image_sha256="0" * 64) for i in range(3)]
    rows += [make_row(9, "rejected", raw=["first\nanswer", ""], images=[{"bytes": png(9), "path": None}])]
    report(write_dataset(tmp_path / "d", rows), tmp_path / "r.html")
    reader.open(tmp_path / "r.html")
    reader.click("#losses .reasons summary")
    assert reader.text("#losses .reasons summary").replace("\xa0", " ") == "too few pairs 1 image rejected, 25.0 %"
    assert reader.texts("#losses .lost pre") == ["first\nanswer", "(nothing)"]
    reader.click("#losses .lost .picture")
    assert reader.texts("#zoom pre") == ["first\nanswer", "(nothing)"]
    reader.press("Escape")
    reader.click("#losses .groups summary")
    assert reader.text("#losses .groups summary").startswith("3 copies")
    assert reader.texts("#losses .groups .answer") == ["Answer 0.", "Answer 1.", "Answer 2."]
