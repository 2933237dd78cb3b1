"""Writes the HTML report: a template with its own style and script, and the content as one JSON block.

The template escapes everything (Jinja2's autoescape) except the package's own style and script. The script shows the
content of the JSON block as text.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from dialog_gen.core.errors import UsageError, check_at_least
from dialog_gen.core.files import write_file
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.inspect.page.content import gallery, overview
from dialog_gen.inspect.page.thumbnails import SIZES, Size, fit
from dialog_gen.inspect.statistics import stats

_MB = 10**6
_DATA_URI = "data:image/webp;base64,"
_IMAGE = f',"image":"{_DATA_URI}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    """The report that was written."""

    out: str
    samples: int
    """Number of images in the gallery."""
    of: int
    """Number of images with a dialogue in the dataset."""
    bytes: int
    thumbnails: Size | None
    """None if the gallery has no images."""

    def __str__(self) -> str:
        if not self.of:
            return f"no image with a dialogue, {self.bytes / _MB:.1f} MB"
        drawn = f"{self.samples:,} of {self.of:,} images" if self.samples < self.of else f"all {self.of:,} images"
        size = self.thumbnails
        thumbnails = f", thumbnails of {size.side} pixels and quality {size.quality}" if size else ""
        return f"{drawn}, {self.bytes / _MB:.1f} MB{thumbnails}"


def report(
    dataset: str | Path | DatasetFolder,
    out: str | Path,
    *,
    samples: int = 1000,
    seed: int = 0,
    max_mb: float = 20,
    on_progress: OnProgress = ignore_progress,
) -> ReportSummary:
    """Writes a dataset's statistics and a gallery as one self-contained HTML file `out`.

    The gallery shows `samples` images, drawn uniformly with `seed`. The thumbnails have the best quality with which the
    file is not larger than `max_mb` (of 10^6 bytes). The same dataset and arguments give the same bytes. After an
    error, no incomplete file is left.

    Raises UsageError for an `out` that cannot be written, for a missing or damaged file of the dataset, and if even the
    smallest thumbnails are too large; DialogGenError if the disk fails.
    """
    check_at_least("--samples", samples, 0)
    folder, out = open_dataset(dataset), Path(out)
    _check_out(out)
    found = stats(folder, on_progress=on_progress)
    rows, originals = gallery(folder, samples=min(samples, found.accepted), seed=seed, on_progress=on_progress)
    content = overview(folder, found, seed=seed) | {"gallery": _gallery(seed, rows, SIZES[0])}
    frame_bytes = len(_page(content)) + len(rows) * len(_IMAGE)
    fitted = fit(originals, int(max_mb * _MB) - frame_bytes)
    if fitted is None:
        raise UsageError(
            f"--max-mb {max_mb:g} is too little for {len(rows):,} images: the page without images takes "
            f"{frame_bytes / _MB:.2f} MB, and thumbnails of {SIZES[-1].side} pixels do not fit in addition. "
            "Give more, or fewer --samples."
        )
    thumbnails, size = fitted
    for row, data in zip(rows, thumbnails, strict=True):
        row["image"] = data and _DATA_URI + base64.b64encode(data).decode()
    used = size if any(thumbnails) else None
    page = _page(content | {"gallery": _gallery(seed, rows, used)})
    write_file(out, page)
    return ReportSummary(out=str(out), samples=len(rows), of=found.accepted, bytes=len(page), thumbnails=used)


def _check_out(out: Path) -> None:
    """Raises UsageError for a path where no file can be written."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file, such as {out / 'report.html'}.")
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise UsageError(f"--out {out} cannot be written: {nearest} is no folder. Choose another place.")


def _gallery(seed: int, rows: list[dict[str, Any]], size: Size | None) -> dict[str, Any]:
    return {"seed": seed, "rows": rows, "thumbnails": size and asdict(size)}


def _page(content: Mapping[str, Any]) -> bytes:
    """The HTML page that shows this content; `content["name"]` is its title.

    Nothing in the content can become markup: characters that could end the JSON block are escaped, and the content
    security policy allows only this package's own script, and no network access.
    """
    style, script = _own_file("page.css"), _own_file("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "require-trusted-types-for 'script'; base-uri 'none'; form-action 'none'"
    )
    page = _environment().from_string(_own_file("page.html"))
    text = page.render(policy=policy, title=str(content["name"]), style=style, script=script, content=content)
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
    return files("dialog_gen.inspect.page").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
