"""The content of the HTML report, as JSON values."""

import heapq
import json
from collections import defaultdict
from dataclasses import asdict
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import hash_64
from dialog_gen.core.progress import OnProgress
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.download.outcomes import MEANING
from dialog_gen.download.provenance import image_provenance
from dialog_gen.gates.base import description_of
from dialog_gen.inspect.page.thumbnails import thumbnail
from dialog_gen.inspect.sampling import sample_rows
from dialog_gen.inspect.statistics import Stats

_EXAMPLES = 3
_RAW_CHARS = 2000
_COLUMNS = ("image_id", "images", "url", "caption", "texts", "model", "gates")


def overview(folder: DatasetFolder, stats: Stats, *, seed: int) -> dict[str, Any]:
    """The content except the gallery. Raises UsageError for a missing or damaged file of rejects."""
    config, run = folder.config(), _json(folder, "run.json")
    return {
        "name": folder.root.rsplit("/", 1)[-1] or "dataset",
        # The local image path is left out for privacy.
        "config": {key: value for key, value in config.items() if key != "images"},
        "finished_at": run.get("finished_at"),
        "run": run.get("run") or {},
        "engine_version": (run.get("engine") or {}).get("version"),
        "versions": run.get("versions") or {},
        "stats": asdict(stats),
        "gates": {name: {"meaning": description_of(name)} | _limits(folder, name) for name in stats.gates},
        "rejects": _rejects(folder, stats, seed),
        "link_rot": _link_rot(folder),
    }


def gallery(
    folder: DatasetFolder, *, samples: int, seed: int, on_progress: OnProgress
) -> tuple[list[dict[str, Any]], list[bytes | None]]:
    """Draws `samples` rows uniformly; returns them in the dataset's order, with a thumbnail for each.

    A thumbnail is None if the row has no usable image.

    Raises UsageError for a missing or damaged file.
    """
    rows: list[dict[str, Any]] = []
    thumbnails: list[bytes | None] = []
    for row in sample_rows(folder, _COLUMNS, samples, seed=seed):
        image = row["images"][0]["bytes"] if row["images"] else None
        thumbnails.append(image and thumbnail(image))
        rows.append(
            {
                "id": row["image_id"],
                "caption": row["caption"],
                "url": row["url"],
                "model": row["model"],
                "pairs": [pair | _marks(row, place) for place, pair in enumerate(row["texts"])],
            }
        )
        on_progress("drawing images", len(rows), samples, "images")
    return rows, thumbnails


def _marks(row: dict[str, Any], place: int) -> dict[str, dict[str, float | None]]:
    """`{"marks": {gate: score}}` with the gates that marked a pair; empty if no gates were applied."""
    if row["gates"] is None:
        return {}
    return {"marks": {score["gate"]: score["score"] for score in row["gates"][place] if score["marked"]}}


def _rejects(folder: DatasetFolder, stats: Stats, seed: int) -> list[dict[str, Any]]:
    """The reasons of rejection, the most frequent first, each with a few examples that are drawn uniformly."""
    drawn: defaultdict[tuple[str, str], list[tuple[int, int, Any]]] = defaultdict(list)
    for number, row in enumerate(folder.rows(["image_id", "status", "reason", "detail", "raw"], part="rejects")):
        raw = [answer[:_RAW_CHARS] for answer in row["raw"]]
        example = {"id": row["image_id"], "detail": row["detail"], "raw": raw}
        # A heap of the smallest hashes, whose first element has the largest of them.
        examples = drawn[row["status"], row["reason"]]
        heapq.heappush(examples, (-hash_64(f"{seed} {row['image_id']}"), number, example))
        if len(examples) > _EXAMPLES:
            heapq.heappop(examples)
    counts = [(count, status, reason) for status, reasons in stats.reasons.items() for reason, count in reasons.items()]
    return [
        {
            "status": status,
            "reason": reason,
            "count": count,
            "examples": [example for _, _, example in sorted(drawn[status, reason], key=lambda item: item[1])],
        }
        for count, status, reason in sorted(counts, key=lambda item: (-item[0], item[1:]))
    ]


def _limits(folder: DatasetFolder, gate: str) -> dict[str, float]:
    """The limits `min` and `max` of a gate in gates.json; limits that are not set are left out."""
    limits = (_json(folder, "gates.json").get("settings") or {}).get(gate) or {}
    return {name: float(limits[name]) for name in ("min", "max") if limits.get(name) is not None}


def _link_rot(folder: DatasetFolder) -> dict[str, Any] | None:
    """The outcomes of the images' URLs; None if they are not known."""
    try:
        found = image_provenance(folder).link_rot
    except UsageError:
        return None
    if found is None:
        return None
    meaning: dict[str, str] = {**MEANING}
    outcomes = {meaning.get(name, name): count for name, count in found.outcomes.items()}
    return {"urls": found.urls, "alive": found.alive, "outcomes": outcomes}


def _json(folder: DatasetFolder, name: str) -> dict[str, Any]:
    """The JSON object in a file of the dataset folder; empty if the file is missing or damaged."""
    try:
        found = json.loads(folder.read(name))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
