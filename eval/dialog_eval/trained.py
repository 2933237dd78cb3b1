"""What a checkpoint was trained on, from the report that its training left beside it."""

from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.files import read_regular
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.config import EMA_FOLDER, MODEL_FOLDER, REPORT_FILE
from dialog_train.data.derived import sources_of

_FOLDERS = (MODEL_FOLDER, EMA_FOLDER)
# Of no use to a reader, or told beside the settings.
_HIDDEN = ("out", "log", "data.work", "model", "pretrained", "seed")
_KEYS = ("steps", "model", "method")
_ROWS_PER_BATCH = 65_536


def training_of(checkpoint: str | None) -> dict[str, Any] | None:
    """What OUT/train.json says about the checkpoint OUT/model; None for what no training of dialog-train wrote.

    It has the name of the model that was tuned (`model`), `method`, `steps`, `rows` of the training set, `seed`, and
    `settings`: the recipe's keys, such as "optim.lr" -> 0.001, with folders by their names only.
    """
    if (read := _report_of(checkpoint)) is None:
        return None
    report, recipe = read
    found: dict[str, Any] = {key: report[key] for key in _KEYS if isinstance(report.get(key), str | int)}
    rows = report["training_set"].get("rows") if isinstance(report.get("training_set"), dict) else None
    settings = {key: value for key, value in _flat(recipe).items() if key not in _HIDDEN}
    return found | {"rows": rows, "seed": recipe.get("seed"), "settings": settings}


def test_images_of(checkpoint: str | None, sha256s: Collection[str]) -> dict[str, int | None] | None:
    """How many of the test images, given by the hashes of their bytes, the checkpoint was trained on.

    The result has the number of `images`, and how many of them are in the dialogues of the training, `trained_on`:
    None if these dialogues are no longer where the training read them, or if it read none. Returns None for what no
    training of dialog-train wrote.
    """
    if (read := _report_of(checkpoint)) is None:
        return None
    data = read[1].get("data")
    trained_on = _images_in(data.get("dialogues") if isinstance(data, dict) else None, set(sha256s))
    return {
        "images": len(sha256s),
        "trained_on": None if trained_on is None else sum(sha256 in trained_on for sha256 in sha256s),
    }


def _images_in(dialogues: Any, wanted: set[str]) -> set[str] | None:
    """Those of the wanted hashes that a dataset on this machine has; None if it cannot be read."""
    if not isinstance(dialogues, str) or "://" in dialogues:
        return None
    found = set[str]()
    try:
        dataset = DatasetFolder.existing(dialogues)
        for source in sources_of(dataset):
            with dataset.row_file(source.file) as file:
                for rows in file.batches(_ROWS_PER_BATCH, ["image_sha256"]):
                    found |= wanted.intersection(rows["image_sha256"].to_pylist())
    except (DialogGenError, OSError, pa.ArrowException, KeyError):
        return None
    return found


def _report_of(checkpoint: str | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The report of the training that wrote the checkpoint OUT/model, and its recipe; None if there is none."""
    if checkpoint is None or Path(checkpoint).name not in _FOLDERS:
        return None
    try:
        report = unsealed(read_regular(Path(checkpoint).absolute().parent / REPORT_FILE))
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or not isinstance(recipe := report.get("recipe"), dict):
        return None
    return report, recipe


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
