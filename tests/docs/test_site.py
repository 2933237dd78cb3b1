"""The documentation as a site: it is built strictly, its links lead somewhere, and its pages fetch nothing."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
FETCHES = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
PASSIVE = {"canonical", "next", "prev", "edit", "alternate"}


class Page(HTMLParser):
    """Ids, links and what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.fetched = set[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if (where := given.get(FETCHES.get(tag, ""))) and given.get("rel") not in PASSIVE:
            self.fetched.append(where)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_in_the_site(site: Path, pages: dict[Path, Page]) -> None:
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert {path.relative_to(site).with_suffix("") for path in pages} == sources
    assert (site / "notebooks/ten-images.ipynb").exists()


def broken(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{path.relative_to(site)}: {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path.relative_to(site)}: no anchor {link}"


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert sum(len(page.links) for page in pages.values()) > 500
    assert list(broken(site, pages)) == []


def test_a_broken_link_would_be_found(site: Path, pages: dict[Path, Page]) -> None:
    wrong = Page('<a href="no-such-page.html">x</a><a href="run.html#no-such-heading">y</a>')
    assert len(list(broken(site, {**pages, site / "wrong.html": wrong}))) == 2


def test_nothing_is_fetched_from_outside(site: Path, pages: dict[Path, Page]) -> None:
    fetched = [where for page in pages.values() for where in page.fetched]
    assert any(where.endswith(".css") for where in fetched)
    assert [where for where in fetched if urlsplit(where).netloc or urlsplit(where).scheme not in ("", "data")] == []
    styles = [path.read_text(encoding="utf-8") for path in (*site.rglob("*.css"), *pages)]
    assert [url for text in styles for url in re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)]+)", text)] == []
    assert [rule for text in styles for rule in re.findall(r"@import[^;]*//[^;]*", text)] == []


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs/images").glob("*.png"))
    assert len(pictures) >= 2
    assert all(path.stat().st_size < 150_000 for path in pictures)
