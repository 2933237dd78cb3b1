"""One row of a dataset as text for people, and as JSON for programs."""

import math
import textwrap
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from typing import Any

from PIL import Image

from dialog_gen.core.plural import count_of
from dialog_gen.core.visible import visible
from dialog_gen.dataset.record import STATEMENTS, marking_gates
from dialog_gen.dataset.rows import FoundRow
from dialog_gen.sources.images import FORMATS

_LABELS = 11
"""The width of the labels."""
_LEAST_WIDTH = 40


def row_text(found: FoundRow, *, width: int | None = None) -> str:
    """The row as lines, with control characters made visible. Lines are broken at `width` columns, if it is given."""
    row = found.row
    lines = [visible(row["image_id"])]
    for label, text in _facts(found):
        lines += _labelled(label, text, width)
    return "\n".join(lines)


def row_json(found: FoundRow) -> dict[str, Any]:
    """The row for JSON: of each image its path and its size in bytes, and the file and number of the row."""
    return {
        **{name: _plain(value) for name, value in found.row.items() if name != "images"},
        "images": [
            {"path": image["path"], "bytes": None if image["bytes"] is None else len(image["bytes"])}
            for image in found.row["images"] or ()
        ],
        "row": {"file": found.file, "number": found.number},
    }


def _facts(found: FoundRow) -> Iterator[tuple[str, str]]:
    row = found.row
    for image in row["images"] or ():
        yield "image", _image_text(image)
    if not row["images"]:
        yield "image", "left out; `dialog-gen rehydrate` fetches it"
    yield "row", f"{found.number} of {found.file}"
    for label in ("url", "caption"):
        if row[label]:
            yield label, row[label]
    yield "made by", _made_by(row)
    if "status" in row:
        yield row["status"], f"{row['reason']}{': ' if row['detail'] else ''}{row['detail'] or ''}"
        for number, answer in enumerate(row["raw"], 1):
            yield f"answer {number}", answer
    else:
        yield from _pairs(row)


def _pairs(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    statements, logprobs, gates = (row.get(name) for name in (STATEMENTS, "answer_logprobs", "gates"))
    for place, pair in enumerate(row["texts"]):
        yield "", ""
        yield f"question {place + 1}", pair["user"]
        yield "answer", pair["assistant"]
        if statements and statements[place] is not None:
            yield "statement", statements[place]
        if logprobs and logprobs[place] is not None:
            yield "log-prob", f"{logprobs[place]:.3g} per token"
        if gates:
            yield from _gates(gates[place])


def _gates(scores: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    values = {score["gate"]: "" if score["score"] is None else f" {score['score']:.3g}" for score in scores}
    if marking := marking_gates(scores):
        yield "marked by", ", ".join(f"{name}{values[name]}" for name in marking)
    if scored := [f"{name}{value}" for name, value in values.items() if value and name not in marking]:
        yield "gates", ", ".join(scored)


def _made_by(row: dict[str, Any]) -> str:
    sampling = row["sampling"]
    parts = [
        f"{row['model']}{' ' if row['model_revision'] else ''}{row['model_revision'] or ''}",
        f"{row['engine']} {row['engine_version']}",
        f"protocol {row['protocol']}",
        f"temperature {sampling['temperature']:.3g}, top-p {sampling['top_p']:.3g}"
        + ("" if sampling["seed"] is None else f", seed {sampling['seed']}"),
        count_of(row["attempts"], "attempt"),
        f"{row['created_at']:%Y-%m-%d %H:%M:%S} UTC",
    ]
    return "; ".join(parts)


def _image_text(image: dict[str, Any]) -> str:
    path, data = image["path"] or "no name", image["bytes"]
    if data is None:
        return f"{path}; its bytes were left out"
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            about = "{}, {} x {} pixels".format(opened.format, *opened.size)
    except Exception:  # noqa: BLE001 - Pillow raises anything on bytes that are no image
        about = "no image of a known format"
    return f"{path}; {about}, {len(data):,} bytes"


def _labelled(label: str, text: str, width: int | None) -> list[str]:
    if not label:
        return [""]
    head, shown = f"  {visible(label):<{_LABELS}}", visible(text)
    if width is None:
        return [f"{head} {shown}"]
    room = max(width, _LEAST_WIDTH) - 1
    gap = " " * (len(head) + 1)
    return textwrap.wrap(shown, room, initial_indent=f"{head} ", subsequent_indent=gap) or [head.rstrip()]


def _plain(value: Any) -> Any:
    """The value without what JSON has no form for: times become text, infinities and NaN null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
