"""The sources: those that the page names are those of the code, and CITATION.cff is one."""

import re
from pathlib import Path

import yaml

from dialog_gen.core.version import __version__

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/citation.md").read_text(encoding="utf-8")


def test_papers_are_those_of_the_code() -> None:
    files = [path for folder in ("pipeline", "train", "eval") for path in (ROOT / folder).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    papers = set(re.findall(r"\b\d{4}\.\d{5}\b", PAGE))
    assert len(papers) > 20
    assert sorted(paper for paper in papers if paper not in code) == []


def test_citation_file_has_what_the_format_needs() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert all(author.get("name") for author in cited["authors"])
    assert cited["license"] == "Apache-2.0"
    assert cited.get("version", __version__) == __version__
    assert cited["title"] in PAGE
