"""What a checkpoint was trained on, from the report that its training left beside it."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from dialog_gen.core.files import read_regular
from dialog_gen.core.json_text import parse_json
from dialog_train.config import EMA_FOLDER, MODEL_FOLDER, REPORT_FILE

_FOLDERS = (MODEL_FOLDER, EMA_FOLDER)
# Of no use to a reader, or told beside the settings.
_HIDDEN = ("out", "log", "data.work", "model", "pretrained", "seed")
_KEYS = ("steps", "model", "method")


def training_of(checkpoint: str | None) -> dict[str, Any] | None:
    """What OUT/train.json says about the checkpoint OUT/model; None for what no training of dialog-train wrote.

    It has the name of the model that was tuned (`model`), `method`, `steps`, `rows` of the training set, `seed`, and
    `settings`: the recipe's keys, such as "optim.lr" -> 0.001, with folders by their names only.
    """
    if checkpoint is None or Path(checkpoint).name not in _FOLDERS:
        return None
    try:
        report = parse_json(read_regular(Path(checkpoint).absolute().parent / REPORT_FILE).decode())
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or not isinstance(recipe := report.get("recipe"), dict):
        return None
    found: dict[str, Any] = {key: report[key] for key in _KEYS if isinstance(report.get(key), str | int)}
    rows = report["training_set"].get("rows") if isinstance(report.get("training_set"), dict) else None
    settings = {key: value for key, value in _flat(recipe).items() if key not in _HIDDEN}
    return found | {"rows": rows, "seed": recipe.get("seed"), "settings": settings}


def label_of(checkpoint: str, name: str) -> str:
    """The row label of a checkpoint: its name, or that of the folder above if a training named the folder "model"."""
    path = Path(checkpoint)
    if path.name not in _FOLDERS or not path.is_dir() or not (above := path.absolute().parent.name):
        return name
    return above if path.name == MODEL_FOLDER else f"{above}, mean of weights"


def _flat(recipe: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Dotted keys -> values; of a path only the last component."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        elif isinstance(value, str) and "/" in value:
            flat[before + key] = PurePath(value.rstrip("/")).name
        else:
            flat[before + key] = value
    return flat
