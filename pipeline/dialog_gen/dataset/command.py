"""OUT/command.json: the command that made a dataset folder, so that `repair` can make a part of it anew.

It is written when the folder is opened for writing. It contains no folder name of its own: a dataset may be moved.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from dialog_gen.core.files import absolute
from dialog_gen.core.sealed_json import sealed, unsealed
from dialog_gen.dataset.folder import DatasetFolder

COMMAND = "command.json"


class Command(BaseModel):
    """A call of the Python API that writes a dataset folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    """"run", "compact", "merge", "rehydrate" or "pull"."""
    arguments: dict[str, Any]
    """Its keyword arguments, except the folder; local paths are absolute. Of several runs, the widest `limit`."""
    config: dict[str, Any] = {}
    """A copy of config.json."""
    gates: dict[str, Any] | None = None
    """A copy of the settings in gates.json; None if no gates were applied."""

    def to_json(self) -> dict[str, Any]:
        """The content of command.json, with its own checksum."""
        return sealed(self.model_dump())


def command_of(command: str, arguments: Mapping[str, Any], *, paths: Iterable[str]) -> Command:
    """The call with these arguments, as JSON values. `paths` names those that are paths or URLs, or lists of them."""
    named = dict(arguments)
    for name in paths:
        if isinstance(named[name], list):
            named[name] = [absolute(str(path)) for path in named[name]]
        elif named[name] is not None:
            named[name] = absolute(str(named[name]))
    # Passwords in addresses are not written down.
    cleaned = {key: _without_passwords(value) for key, value in named.items()}
    return Command(command=command, arguments=json.loads(json.dumps(cleaned, default=str)))


def recorded_command(folder: DatasetFolder) -> Command | None:
    """The content of command.json; None if the file is missing or damaged."""
    try:
        return Command.model_validate(unsealed(folder.read(COMMAND)))
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return None


def updated(before: Command | None, now: Command) -> Command:
    """The call to record after another one was recorded: the widest limit and the applied gates stay."""
    if before is None or before.command != now.command:
        return now
    limits = [before.arguments.get("limit"), now.arguments.get("limit")]
    widest = None if None in limits else max(limit for limit in limits if limit is not None)
    limit = {"limit": widest} if "limit" in now.arguments else {}
    return now.model_copy(update={"arguments": {**now.arguments, **limit}, "gates": before.gates})


def _without_passwords(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_passwords(item) for item in value]
    return re.sub(r"(?<=://)[^/@\s]*@", "", value) if isinstance(value, str) else value
