"""Writes the HTML report: a template with its own style and script, and the content as one JSON block.

The template escapes everything (Jinja2's autoescape) except the package's own style and script. The script, which is
kept in several files, shows the content of the JSON block as text.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from dialog_gen.core.errors import UsageError, check_at_least
from dialog_gen.core.files import write_file
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.visible import visible
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.inspect.page.compare import compare as compare_datasets
from dialog_gen.inspect.page.compare import comparison_line
from dialog_gen.inspect.page.content import gallery, gate_names, overview
from dialog_gen.inspect.page.pictures import Pictures
from dialog_gen.inspect.page.thumbnails import SIZES, Size
from dialog_gen.inspect.statistics import Stats, stats

_MB = 10**6
_SCRIPTS = ("elements", "charts", "overview", "sections", "gallery", "cards", "zoom", "main")
_TEXT_SHARE = 0.7
_SHORTEST, _LONGEST = 200, 4000
_TEXTS_PER_PAIR, _TEXTS_PER_ROW = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    """The report that was written."""

    out: str
    samples: int
    """Number of images in the gallery."""
    of: int
    """Number of images with a dialogue in the dataset; of a comparison, of those that both datasets have."""
    bytes: int
    thumbnails: Size | None
    """None if the page has no images."""
    verdict: str
    """What the page says first."""
    findings: tuple[str, ...] = ()
    """The things to look at behind the verdict; none of a comparison."""

    def __str__(self) -> str:
        said = "\n".join([self.verdict, *(f"  {visible(finding)}" for finding in self.findings)])
        if not self.of:
            return f"{said}\nno image with a dialogue to show, {self.bytes / _MB:.1f} MB"
        drawn = f"{self.samples:,} of {self.of:,} images" if self.samples < self.of else f"all {self.of:,} images"
        if self.of == 1:
            drawn = "1 image"
        size = self.thumbnails
        thumbnails = f", thumbnails of {size.side} pixels and quality {size.quality}" if size else ""
        return f"{said}\n{drawn}, {self.bytes / _MB:.1f} MB{thumbnails}"


def report(
    dataset: str | Path | DatasetFolder,
    out: str | Path,
    *,
    compare: str | Path | DatasetFolder | None = None,
    samples: int = 1000,
    seed: int = 0,
    max_mb: float = 20,
    on_progress: OnProgress = ignore_progress,
) -> ReportSummary:
    """Writes a dataset's statistics and a gallery as one self-contained HTML file `out`.

    The gallery shows `samples` images, drawn uniformly with `seed`. With `compare`, a second dataset, it shows images
    that both have, with both dialogues side by side. The thumbnails have the best quality with which the file is not
    larger than `max_mb` (of 10^6 bytes). The same datasets and arguments give the same bytes. After an error, no
    incomplete file is left.

    Raises UsageError for an `out` that cannot be written, for a missing or damaged file of a dataset, and if even the
    smallest thumbnails are too large; DialogGenError if the disk fails.
    """
    check_at_least("--samples", samples, 0)
    folders, out = [open_dataset(dataset)], Path(out)
    if compare is not None:
        folders.append(open_dataset(compare))
        if folders[0].location.rstrip("/") == folders[1].location.rstrip("/"):
            raise UsageError(f"--compare {folders[1].location} is the same dataset: name another one.")
    _check_out(out)
    pictures = Pictures()
    content, of = _content(folders, pictures, samples=samples, seed=seed, max_mb=max_mb, on_progress=on_progress)
    shown: dict[str, Any] = content["gallery"]
    frame_bytes = len(_page(content))
    size = pictures.place(int(max_mb * _MB) - frame_bytes)
    if size is None:
        raise UsageError(
            f"--max-mb {max_mb:g} is too little for {len(shown['rows']):,} images: the page without images takes "
            f"{frame_bytes / _MB:.2f} MB, and thumbnails of {SIZES[-1].side} pixels do not fit in addition. "
            "Give more, or fewer --samples."
        )
    used = size if pictures.count else None
    shown["thumbnails"] = used and asdict(used)
    page = _page(content)
    write_file(out, page)
    findings = content["sides"][0]["verdict"]["findings"] if compare is None else []
    return ReportSummary(
        out=str(out),
        samples=len(shown["rows"]),
        of=of,
        bytes=len(page),
        thumbnails=used,
        verdict=content["line"],
        findings=tuple(finding["text"] for finding in findings),
    )


def _content(
    folders: Sequence[DatasetFolder],
    pictures: Pictures,
    *,
    samples: int,
    seed: int,
    max_mb: float,
    on_progress: OnProgress,
) -> tuple[dict[str, Any], int]:
    """The content of the page about one dataset or two, and of how many images its gallery is a sample."""
    found = [stats(folder, on_progress=on_progress) for folder in folders]
    gates = [gate_names(of) for of in found]
    sides = [overview(folder, of, pictures, seed=seed) for folder, of in zip(folders, found, strict=True)]
    most_chars = _most_chars(samples, found, max_mb)
    told = None
    if len(folders) == 1:
        count = min(samples, found[0].accepted)
        rows = gallery(
            folders[0], gates[0], pictures, samples=count, seed=seed, most_chars=most_chars, on_progress=on_progress
        )
        of, line, name = found[0].accepted, sides[0]["verdict"]["line"], sides[0]["name"]
    else:
        compared = compare_datasets(
            folders, gates, pictures, samples=samples, seed=seed, most_chars=most_chars, on_progress=on_progress
        )
        rows, of, told = compared.rows, compared.shared, compared.told
        line = comparison_line(told, [(side.pairs_kept, side.pairs_gated) for side in found])
        name = " and ".join(_names(sides, folders))
    # The final size of thumbnails is not known yet; another one does not take more characters.
    shown = {"seed": seed, "rows": rows, "thumbnails": asdict(SIZES[0])}
    return {"name": name, "line": line, "of": of, "sides": sides, "comparison": told, "gallery": shown}, of


def _most_chars(samples: int, found: Sequence[Stats], max_mb: float) -> int:
    """The longest text in the gallery: most of the page, if every text were as long."""
    texts = sum(
        min(samples, side.accepted) * (_TEXTS_PER_ROW + _TEXTS_PER_PAIR * side.pairs / (side.accepted or 1))
        for side in found
    )
    return int(max(_SHORTEST, min(_LONGEST, _TEXT_SHARE * max_mb * _MB / (texts or 1))))


def _names(sides: Sequence[dict[str, Any]], folders: Sequence[DatasetFolder]) -> list[str]:
    """The names of two datasets; with the names of their parent folders if they are called the same."""
    if sides[0]["name"] == sides[1]["name"]:
        for side, folder in zip(sides, folders, strict=True):
            side["name"] = "/".join(folder.root.rsplit("/", 2)[-2:])
    return [side["name"] for side in sides]


def _check_out(out: Path) -> None:
    """Raises UsageError for a path where no file can be written."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file, such as {out / 'report.html'}.")
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise UsageError(f"--out {out} cannot be written: {nearest} is no folder. Choose another place.")


def _page(content: Mapping[str, Any]) -> bytes:
    """The HTML page that shows this content; `content["name"]` is its title.

    Nothing in the content can become markup: characters that could end the JSON block are escaped, and the content
    security policy allows only this package's own script, and no network access.
    """
    style, script = _own_file("page.css"), "\n".join(_own_file(f"script/{name}.js") for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "require-trusted-types-for 'script'; base-uri 'none'; form-action 'none'"
    )
    page = _environment().from_string(_own_file("page.html"))
    text = page.render(
        policy=policy,
        title=str(content["name"]),
        line=str(content["line"]),
        style=style,
        script=script,
        content=content,
    )
    return text.encode("utf-8", "replace")  # file names and JSON may contain lone surrogates


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_function"] = _dumps
    return environment


def _dumps(value: Any, **_: Any) -> str:
    """Compact JSON. Jinja2's filter `tojson` calls this, and then escapes <, >, & and '."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")  # line ends in older JavaScript


def _own_file(name: str) -> str:
    return files("dialog_gen.inspect.page").joinpath(*name.split("/")).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
