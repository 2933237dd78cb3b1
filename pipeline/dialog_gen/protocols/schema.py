"""The JSON schema of a list of pairs, for engines that can make a model keep to one."""

from functools import cache
from typing import Any


@cache
def pairs_schema(pairs: int) -> dict[str, Any]:
    """The schema of `{"pairs": [{"question": "...", "answer": "..."}, ...]}` with so many pairs.

    It has only what OpenAI's strict mode knows: an object at the top, all keys required, no others.
    """
    names = ["question", "answer"]
    pair = _object({name: {"type": "string"} for name in names})
    return _object({"pairs": {"type": "array", "items": pair, "minItems": pairs, "maxItems": pairs}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
