"""Reports for tests: datasets to make them of, and the elements of a page."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dialog_gen.dataset.writer import open_writer
from dialog_gen.inspect.page import report
from helpers.rows import gates_of, make_row, shard_of, write_shard

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
    """A dataset of one shard with these rows."""
    with open_writer(str(out), config or {"model": "m"}) as store:
        write_shard(store, shard_of("s0", len(rows)), rows)
    return out


@dataclass
class Element:
    """An element, with all the text in it."""

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
        """The elements with this tag and these attributes."""
        wanted = attributes.items()
        return [
            e for e in self.elements if e.tag == tag and all(e.attributes.get(n.strip("_")) == v for n, v in wanted)
        ]

    def one(self, tag: str, **attributes: str) -> Element:
        """The only such element."""
        (element,) = self.all(tag, **attributes)
        return element

    @property
    def data(self) -> Any:
        """The content of the page."""
        return json.loads(self.one("script", id="data").text)

    @property
    def side(self) -> Any:
        """What the page says of its only dataset."""
        (side,) = self.data["sides"]
        return side

    @property
    def rows(self) -> Any:
        """The samples of its only dataset."""
        return [row["sides"][0] | {"images": row["images"]} for row in self.data["gallery"]["rows"]]

    @property
    def cards(self) -> list[str | None]:
        """The ids of the samples that are shown."""
        return [e.attributes["data-id"] for e in self.all("article") if "data-id" in e.attributes]


def read(file: Path) -> Page:
    """The page in a file."""
    return Page(file.read_text(encoding="utf-8"))


def gated_row(number: int) -> dict[str, Any]:
    """Marked by `leak` where the number is 0 mod 3, by `length` too where it is 0 mod 6."""
    against = [["leak"], ["leak", "length"]][number % 6 == 0] if number % 3 == 0 else []
    texts = [{"user": f"What is {number}?", "assistant": "A Yellow (square)."}, {"user": "Is it?", "assistant": "Yes"}]
    gates = gates_of([against, []], leak=[0.875, 0.25], length=[3.0, 1.0])
    return make_row(number, texts=texts, gates=gates)


def hostile_report(folder: Path) -> Path:
    """Makes a report in which every text that comes from outside is hostile, and so are the names of files."""
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
