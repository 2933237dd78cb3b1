"""The page of results as a browser shows it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import Browser, browser, in_browser
from helpers.results import entry, save, sweep

from dialog_eval.tables.table import write_table

pytestmark = in_browser


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as reader:
        yield reader


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    hostile = "<b onmouseover=alert(1)>" + "W" * 500
    more = [entry("base", [1.0, 0.0] * 50, task="retrieval", metric="image R@1", protocol="5")]
    more += [
        entry(name, [1.0, 1.0] * 50, task="retrieval", metric="image R@1", protocol="5") for name in ("A", hostile)
    ]
    write_table(save(folder, [*sweep(), *more]), folder / "t.html")
    return folder / "t.html"


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_in_colours_that_can_be_read(reader: Browser, page: Path, width: int, dark: bool) -> None:
    """Nothing is wider than the window, text stands out, and nothing but the page itself is fetched."""
    reader.problems.clear()
    reader.open(page, width=width, dark=dark)
    assert reader.value("document.documentElement.scrollWidth") <= width
    colours = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    text, paper = (sum(map(int, colour[4:-1].split(","))) for colour in reader.value(colours))
    assert (text - paper > 500) if dark else (paper - text > 500)
    assert [address.rsplit("/", 1)[-1] for address in reader.requests] == ["t.html"]
    assert reader.problems == []


def test_what_a_reader_sees_first_and_what_is_folded(reader: Browser, page: Path) -> None:
    reader.open(page)
    shown = reader.value("document.body.innerText")
    assert shown.index("gains 50.0 points") < shown.index("Gains and losses") < shown.index("Overview")
    assert reader.value("[...document.querySelectorAll('details')].every((one) => !one.open)")
    folded = "document.querySelector('details table').offsetParent === null"
    before = reader.value("document.querySelector('details').offsetHeight")
    reader.click("details summary")
    assert reader.value("document.querySelector('details').offsetHeight") > before
    assert not reader.value(folded)
