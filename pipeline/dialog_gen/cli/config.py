"""The flags of a command as a TOML file: read for `--config FILE`, and written, with all defaults, for `init`.

Both come from the command's own parameters, so that a new flag is a new key without a further line.
"""

import inspect
import json
import textwrap
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from dialog_gen.core.toml_files import read_toml_model

_LINE = 118
_HEADER = """\
# What `{command} --config {file}` is to do. Flags on the command line override this file, and
# --no-FLAG leaves out what it says of a flag.
#
# Lines such as #seed = 0 are settings with their defaults: remove the # to change one. <...> stands where nothing is
# set by default. Relative paths are relative to this file.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag of a command, as a key of its file."""

    parameter: str
    """The name of the function's parameter."""
    key: str
    """The name of the flag, with "_" for "-"."""
    kind: Any
    """The type of its value."""
    default: Any
    """None if there is none."""
    is_required: bool
    help: str
    least: float | None
    most: float | None


@cache
def settings_of(function: Callable[..., Any]) -> tuple[Setting, ...]:
    """The flags of a command, which is a function with typer's annotations. `--config` itself is none of them."""
    hints = get_type_hints(function, include_extras=True)
    settings = list[Setting]()
    for name, parameter in inspect.signature(function).parameters.items():
        kind, option = get_args(hints[name])
        # In an annotation, typer keeps the first name of a flag where a default would be.
        names = [word for word in (option.default, *(option.param_decls or ())) if isinstance(word, str)]
        flag = next((word for word in names if word.startswith("--")), name)
        is_required = parameter.default is parameter.empty
        default = None if is_required else parameter.default
        key = flag.lstrip("-").replace("-", "_")
        limits = getattr(option, "min", None), getattr(option, "max", None)
        settings.append(Setting(name, key, kind, default, is_required, option.help or "", *limits))
    return tuple(setting for setting in settings if setting.key != "config")


def read_config(file: Path, function: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a file for a command: parameter -> value.

    Relative paths in the file are relative to its folder. Raises UsageError if the file cannot be read, for unknown
    keys, and for values of another type or beyond the flag's limits.
    """
    found = read_toml_model(file, _model_of(function), "config").model_dump(exclude_unset=True)
    return {
        setting.parameter: _placed(setting.key, found[setting.key], file.parent)
        for setting in settings_of(function)
        if setting.key in found
    }


def config_text(
    function: Callable[..., Any],
    *,
    command: str,
    file: str,
    groups: Mapping[str, Collection[str]],
    values: Mapping[str, Any],
) -> str:
    """A file with each flag of a command: those in `values` are set, the others are comments with their defaults.

    `groups` maps a heading to the parameters under it; the others come first.
    """
    settings = settings_of(function)
    grouped = {name for names in groups.values() for name in names}
    sections: dict[str, list[Setting]] = {"": [one for one in settings if one.parameter not in grouped]}
    sections |= {heading: [one for one in settings if one.parameter in names] for heading, names in groups.items()}
    parts = [_HEADER.format(command=command, file=file)]
    for heading, members in sections.items():
        parts += [f"\n# {heading}\n\n" if heading else "\n", "\n".join(_shown(one, values) for one in members)]
    return "".join(parts)


def toml_value(value: bool | float | str | Sequence[str]) -> str:
    """A value as TOML, which spells these like JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@cache
def _model_of(function: Callable[..., Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        setting.key: (Annotated[setting.kind, Field(ge=setting.least, le=setting.most)], None)
        for setting in settings_of(function)
    }
    with warnings.catch_warnings():
        # A key may have the name of one of pydantic's own methods, such as `json`; nobody calls that here.
        warnings.filterwarnings("ignore", message="Field name .* shadows an attribute")
        return create_model("Config", __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


def _placed(key: str, value: Any, folder: Path) -> Any:
    """The value; a relative path becomes the path that it is in the folder."""
    if not _is_path(key, value, folder):
        return value
    path = Path(value).expanduser()
    if path.is_absolute():
        return str(path) if value.startswith("~") else value
    # Not `folder / value`, which would take away a "/" at the end.
    return value if folder == Path() else f"{folder}/{value}"


def _is_path(key: str, value: Any, folder: Path) -> bool:
    """Whether a value is a local path; those of `model`, `protocol` and `gates` may also be names."""
    match key:
        case "images" | "out":
            return "://" not in value and bool(value.strip())
        case "protocol" | "gates":
            return value.endswith(".toml")
        case "model":
            return (folder / Path(value).expanduser()).is_dir() and not _is_known_model(value)
        case _:
            return False


def _is_known_model(name: str) -> bool:
    from dialog_gen.models.registry import MODELS

    return name in MODELS.names()


def _shown(setting: Setting, values: Mapping[str, Any]) -> str:
    about = textwrap.fill(setting.help, _LINE, initial_indent="# ", subsequent_indent="# ")
    if setting.key in values:
        return f"{about}\n{setting.key} = {toml_value(values[setting.key])}\n"
    value = f"<{_kind_text(setting.kind)}>" if setting.default is None else toml_value(setting.default)
    return f"{about}\n#{setting.key} = {value}\n"


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(toml_value, get_args(kind)))
    words = {int: "integer", float: "number", str: '"text"', list[str]: '["text", ...]'}
    return words.get(kind) or " or ".join(_kind_text(one) for one in get_args(kind) if one is not type(None))
