"""Published JSON files, checked against the layout that is needed of them."""

import codecs
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dialog_gen.core.errors import UsageError

_Layout = TypeVar("_Layout", bound=BaseModel)


def read_json_file(
    path: Path, layout: type[_Layout], what: str, hint: str = "", error_type: type[UsageError] = UsageError
) -> _Layout:
    """The content of a file, which `what` describes in errors. Keys that the layout does not name are not looked at.

    `hint`: what to say where a key of the outermost object is missing.

    Raises `error_type` for a file that cannot be read, is no JSON, or has another layout.
    """
    try:
        return layout.model_validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            is_zip = path.suffix.lower() == ".zip"
            hint = "Unpack it, and give the JSON in it." if is_zip else "It is damaged or cut off: fetch it again."
        elif first["type"] != "missing" or len(first["loc"]) != 1:
            hint = ""
        where = ".".join(map(str, first["loc"])) or "the file"
        raise error_type(f"{path} is not a {what}: {where}: {first['msg']}. {hint}".rstrip()) from None
