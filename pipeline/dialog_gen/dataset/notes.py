"""The small JSON files of a dataset folder, beside its shards: whether they can be read, and what they promise."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from dialog_gen.core.plural import count_of
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.command import COMMAND, recorded_command
from dialog_gen.dataset.folder import DatasetFolder

RUN, GATES = "run.json", "gates.json"
NOTES = (RUN, GATES, "images.json", "rehydrate.json", COMMAND)
"""Files with one JSON object each; a dataset is complete without them."""
REPAIR = "repair.json"


class Repair(BaseModel):
    """The content of repair.json, which exists during a repair: what it still has to do after it set files aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: list[str] = []
    """Shards of this dataset that were set aside."""
    suspects: list[str] = []
    """Names of files that were set aside, and may have been shards of this dataset."""
    finished: bool = False
    """Whether a run had finished: then all shards of its input must be there."""
    gates: dict[str, Any] | None = None
    """The settings of the gates that had been applied."""


def json_object(folder: DatasetFolder, name: str) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none, or if the file is damaged."""
    try:
        found = unsealed(folder.read(name))
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def begun_repair(folder: DatasetFolder) -> Repair | None:
    """The content of repair.json; None if no repair is under way."""
    try:
        return Repair.model_validate(unsealed(folder.read(REPAIR)))
    except (FileNotFoundError, IsADirectoryError):
        return None
    except ValueError:
        return Repair()


def damaged_notes(folder: DatasetFolder) -> list[str]:
    """The names of the files that exist but are damaged."""
    found = [name for name in NOTES if json_object(folder, name) is None and folder.exists(name)]
    is_damaged = COMMAND not in found and recorded_command(folder) is None and folder.exists(COMMAND)
    return [*found, COMMAND] if is_damaged else found


def missing_note(folder: DatasetFolder) -> str | None:
    """The problem if gates were applied and gates.json is missing; else None."""
    command = recorded_command(folder)
    gated = command is not None and command.gates is not None
    return f"{GATES} is missing" if gated and not folder.exists(GATES) else None


def missing_shards(folder: DatasetFolder, images: int) -> str | None:
    """The problem if a dataset with `images` images must have more; None if it need not."""
    repair = begun_repair(folder)
    if repair is not None and json_object(folder, REPAIR) is None:
        return f"{REPAIR} is damaged, which tells what a repair has still to make anew"
    waiting = [name for name in repair.shards if not folder.exists(f"shards/{name}.json")] if repair else []
    if waiting:
        return (
            f"{count_of(len(waiting), 'shard')} {'was' if len(waiting) == 1 else 'were'} set aside and not "
            f"made again, first {waiting[0]}: the repair did not end"
        )
    counted = (json_object(folder, RUN) or {}).get("dataset")
    counted = counted.get("images") if isinstance(counted, dict) else None
    if isinstance(counted, int) and counted > images:
        return f"{count_of(counted - images, 'image')} fewer than the last run counted ({counted}): shards were removed"
    return None
