"""The content of the HTML report, as JSON values of bounded size."""

from dataclasses import asdict
from itertools import islice
from math import isfinite
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.download.outcomes import MEANING
from dialog_gen.download.provenance import image_provenance
from dialog_gen.gates.base import description_of
from dialog_gen.inspect.page.pictures import Pictures
from dialog_gen.inspect.page.rejects import rejects
from dialog_gen.inspect.page.repeats import repeats
from dialog_gen.inspect.page.telling import DIALOGUE_COLUMNS, cut, dialogue
from dialog_gen.inspect.sampling import sample_rows
from dialog_gen.inspect.statistics import Stats
from dialog_gen.inspect.verdict import verdict

_GATES = 40
_NOT_SHOWN = ("reasons", "pairs_per_image", "gates")


def overview(folder: DatasetFolder, stats: Stats, pictures: Pictures, *, seed: int) -> dict[str, Any]:
    """What the page shows of a dataset except the gallery.

    Raises UsageError for a missing or damaged file.
    """
    config, run, gates = folder.config(), _json(folder, "run.json"), gate_names(stats)
    shown = {name: value for name, value in asdict(stats).items() if name not in _NOT_SHOWN}
    return {
        "name": folder.root.rsplit("/", 1)[-1] or "dataset",
        # The local image path is left out for privacy.
        "config": {key: cut(value) for key, value in config.items() if key != "images"},
        "finished_at": cut(run.get("finished_at")),
        "run": _figures(run),
        "engine_version": cut(_object(run.get("engine")).get("version")),
        "versions": cut(_object(run.get("versions"))),
        "verdict": asdict(verdict(stats)),
        "stats": shown,
        "gates": [
            {"name": name, "meaning": description_of(name), **_limits(folder, name), **asdict(stats.gates[name])}
            for name in gates
        ],
        "rejects": rejects(folder, stats, pictures, seed=seed),
        "repeats": repeats(folder, gates, pictures) if stats.repeated_images else [],
        "link_rot": _link_rot(folder),
    }


def _figures(run: dict[str, Any]) -> dict[str, float]:
    """The numbers in a run's report about all its engines together."""
    return {name: value for name, value in _object(run.get("run")).items() if isinstance(value, int | float)}


def gate_names(stats: Stats) -> list[str]:
    """The gates that the page shows."""
    return list(islice(stats.gates, _GATES))


def gallery(
    folder: DatasetFolder,
    gates: list[str],
    pictures: Pictures,
    *,
    samples: int,
    seed: int,
    most_chars: int,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Draws `samples` rows uniformly; returns them in the dataset's order.

    Raises UsageError for a missing or damaged file.
    """
    rows: list[dict[str, Any]] = []
    for row in sample_rows(folder, DIALOGUE_COLUMNS, samples, seed=seed):
        rows.append({"sides": [dialogue(row, gates, most_chars=most_chars)]})
        pictures.add(rows[-1], row)
        on_progress("drawing images", len(rows), samples, "images")
    return rows


def _limits(folder: DatasetFolder, gate: str) -> dict[str, float]:
    """The limits `min` and `max` of a gate in gates.json; limits that are not set are left out."""
    limits = _object(_object(_json(folder, "gates.json").get("settings")).get(gate))
    numbers = {name: limits.get(name) for name in ("min", "max")}
    return {name: float(limit) for name, limit in numbers.items() if isinstance(limit, int | float) and isfinite(limit)}


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
        return _object(unsealed(folder.read(name)))
    except (FileNotFoundError, ValueError):
        return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
