"""Records and shards made without a run, and what lies in a dataset folder."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dialog_gen.core.blocks import digests
from dialog_gen.core.sealed_json import sealed, unsealed
from dialog_gen.dataset.folder import ShardManifest
from dialog_gen.dataset.record import PAIR_COLUMNS, VOLATILE_COLUMNS, marking_gates
from dialog_gen.dataset.shard_writer import ShardWriter
from dialog_gen.dataset.writer import DatasetWriter
from dialog_gen.sources.base import InputShard, SourceImage
from helpers.inputs import listed_shard, png, sha256

_REASONS = {"rejected": "too_few_pairs", "unreadable": "truncated"}


def make_row(number: int, status: str = "accepted", **columns: Any) -> dict[str, Any]:
    """A complete record about `png(number)`."""
    data = png(number)
    row: dict[str, Any] = {
        "image_id": f"image {number}",
        "image_sha256": sha256(data),
        "images": [{"bytes": data, "path": f"{number}.png"}],
        "url": None,
        "source_sha256": None,
        "caption": f"caption {number}",
        "model": "m",
        "model_revision": "r",
        "engine": "e",
        "engine_version": "1",
        "protocol": "p",
        "prompt_sha256": "0",
        "sampling": {"temperature": 0.5, "top_p": 1.0, "max_tokens": 9, "seed": number},
        "finish_reasons": ["stop"],
        "attempts": 1,
        "created_at": datetime(2025, 1, 2, tzinfo=UTC),
    }
    if status == "accepted":
        row["texts"] = [{"user": f"What {number}?", "assistant": f"Answer {number}."}]
        row |= dict.fromkeys(PAIR_COLUMNS)
    else:
        row |= {"status": status, "reason": _REASONS[status], "detail": None, "raw": ["..."]}
    return row | columns


def gates_of(marks: Sequence[Sequence[str]], **scores: Sequence[float | None]) -> list[list[dict[str, Any]]]:
    """The column `gates`: for each pair the gates that mark it, and for each gate its scores."""
    names = dict.fromkeys([*scores, *(name for marking in marks for name in marking)])
    return [
        [
            {"gate": name, "score": scores[name][place] if name in scores else None, "marked": name in marking}
            for name in names
        ]
        for place, marking in enumerate(marks)
    ]


def marks_of(row: dict[str, Any]) -> list[list[str]] | None:
    """For each pair the gates that mark it; None where no gate was applied."""
    return None if row["gates"] is None else [marking_gates(scores) for scores in row["gates"]]


def scores_of(row: dict[str, Any], gate: str) -> list[float | None] | None:
    """A gate's score of each pair; None where it was not applied."""
    found = [score["score"] for scores in row["gates"] or () for score in scores if score["gate"] == gate]
    return found or None


def shard_of(name: str, count: int, *, fingerprint: str = "f") -> InputShard:
    """A shard that asks for `count` rows; the images are never read."""
    return listed_shard(name, [SourceImage(f"image {number}", b"") for number in range(count)], fingerprint=fingerprint)


def write_shard(
    store: DatasetWriter, shard: InputShard, rows: Sequence[dict[str, Any]], *, order: Iterable[int] | None = None
) -> ShardManifest:
    """Adds the rows in this order of their indices, and commits."""
    writer = ShardWriter(store.staging(), shard)
    for index in range(len(rows)) if order is None else order:
        writer.add(index, rows[index], output_tokens=2)
    return store.commit(writer.finish())


def rows_of(out: Path, part: str = "data", *, volatile: bool = False) -> list[dict[str, Any]]:
    """All rows of `data` or `rejects`, in order of file and row, without what may differ between runs."""
    rows = [row for file in sorted((out / part).glob("*")) for row in pq.read_table(file).to_pylist()]
    return [{k: v for k, v in row.items() if volatile or k not in VOLATILE_COLUMNS} for row in rows]


def sign(out: Path, shard: str) -> None:
    """Makes the manifest of a shard promise what is there, as someone would who wants an edit to pass."""
    sidecar = out / "shards" / f"{shard}.json"
    manifest = unsealed(sidecar.read_bytes())
    for entry in manifest["files"]:
        with (out / entry["path"]).open("rb") as file:
            entry |= asdict(digests(file))
    sidecar.write_text(json.dumps(sealed(manifest)))


def files_of(out: Path) -> dict[str, bytes]:
    """Relative path -> content of every file, but the log."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files if path.name != "engine.log"}
