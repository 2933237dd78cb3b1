"""JSON objects with a checksum of their own, under the key "sha256": damage that leaves valid JSON is found, too."""

import json
from collections.abc import Mapping
from typing import Any

from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.json_text import parse_json

_SHA256 = "sha256"


class DamagedJsonError(ValueError):
    """A JSON object has another checksum than it promises."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `content`, which is JSON without a key "sha256", as it is read again, with its checksum."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return {**plain, _SHA256: sha256_json(plain)}


def checked(content: Any) -> Any:
    """The value of a JSON text without its checksum. Raises DamagedJsonError if it has a wrong one.

    An object without a checksum, such as one of an earlier version or of another program, is not checked.
    """
    if not isinstance(content, dict) or _SHA256 not in content:
        return content
    plain = {key: value for key, value in content.items() if key != _SHA256}
    if sha256_json(plain) != content[_SHA256]:
        raise DamagedJsonError("its checksum is not the one recorded")
    return plain


def unsealed(text: bytes | str) -> Any:
    """The value of a JSON text, as `checked` gives it. Raises ValueError as `parse_json` and `checked` do."""
    return checked(parse_json(text))
