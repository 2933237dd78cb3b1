"""Reads the JSON files of model folders."""

from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import read_regular
from dialog_gen.core.json_text import parse_json


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError if it cannot be read or holds something else."""
    try:
        content = parse_json(read_regular(path), finite=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object.")
    return content
