"""The page: its own style and script, and all content in one JSON block that the script shows as text."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_file
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.inspect.page.content import gallery, overview
from dialog_gen.inspect.page.thumbnails import SIZES, Size, fit
from dialog_gen.inspect.statistics import Stats

_MB = 10**6
_DATA_URI = "data:image/webp;base64,"
_IMAGE = f',"image":"{_DATA_URI}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was written."""

    out: Path
    samples: int
    of: int
    bytes: int
    thumbnails: Size | None
    """None where there are no images."""

    def __str__(self) -> str:
        if not self.of:
            return f"no image with a dialogue, {self.bytes / _MB:.1f} MB"
        drawn = f"{self.samples:,} of {self.of:,} images" if self.samples < self.of else f"all {self.of:,} images"
        told = (
            self.thumbnails and f", thumbnails of {self.thumbnails.side} pixels and quality {self.thumbnails.quality}"
        )
        return f"{drawn}, {self.bytes / _MB:.1f} MB{told or ''}"


def write_report(
    folder: DatasetFolder,
    stats: Stats,
    out: Path,
    *,
    samples: int = 1000,
    seed: int = 0,
    max_mb: float = 20,
    on_row: Callable[[], None] = lambda: None,
) -> Report:
    """Writes a dataset as one HTML page that needs nothing else, whole or not at all.

    The gallery shows `samples` images, drawn uniformly under the seed; their thumbnails are as good as `max_mb` (of
    10^6 bytes) allows. The same dataset, statistics and arguments give the same bytes.

    Raises UsageError where `out` cannot be written, where a file of the dataset is gone or damaged, and where not even
    the smallest thumbnails fit.
    """
    check_out(out)
    rows, originals = gallery(folder, samples=samples, seed=seed, on_row=on_row)
    content = overview(folder, stats, seed=seed) | {"gallery": _gallery(seed, rows, SIZES[0])}
    frame_bytes = len(build_page(content)) + len(rows) * len(_IMAGE)
    fitted = fit(originals, int(max_mb * _MB) - frame_bytes)
    if fitted is None:
        raise UsageError(
            f"--max-mb {max_mb:g} is too little for {len(rows):,} images: all but the images takes "
            f"{frame_bytes / _MB:.2f} MB, and thumbnails of {SIZES[-1].side} pixels do not fit beside it. "
            "Give more, or fewer --samples."
        )
    thumbnails, size = fitted
    for row, data in zip(rows, thumbnails, strict=True):
        row["image"] = data and _DATA_URI + base64.b64encode(data).decode()
    used = size if any(thumbnails) else None
    page = build_page(content | {"gallery": _gallery(seed, rows, used)})
    write_file(out, page)
    return Report(out=out, samples=len(rows), of=stats.accepted, bytes=len(page), thumbnails=used)


def _gallery(seed: int, rows: list[dict[str, Any]], size: Size | None) -> dict[str, Any]:
    return {"seed": seed, "rows": rows, "thumbnails": size and asdict(size)}


def build_page(content: Mapping[str, Any]) -> bytes:
    """The page that shows this content; `content["name"]` is its title.

    Nothing of the content is markup: the JSON block holds no character that could end it, and the policy lets the
    browser run this package's own script and no other, and load nothing.
    """
    style, script = _part("page.css"), _part("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "require-trusted-types-for 'script'; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    page = Template(_part("page.html")).substitute(
        policy=policy, title=escape(str(content["name"])), style=style, data=data, script=script
    )
    return page.encode("utf-8", "replace")  # lone surrogates in names of files and in JSON


def check_out(out: Path) -> None:
    """Raises UsageError where no file can come to be at `out`."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file, such as {out / 'report.html'}.")
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise UsageError(f"--out {out} cannot be written: {nearest} is no folder. Choose another place.")


def _part(name: str) -> str:
    return files("dialog_gen.inspect.page").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
