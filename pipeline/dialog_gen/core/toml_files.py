"""Reads TOML files into pydantic models, with readable error messages. A file is shipped under a name or the user's."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import read_regular
from dialog_gen.core.plain_problems import plain_problem

_SHOWN_LENGTH = 200

Model = TypeVar("Model", bound=BaseModel)


def find_toml(name_or_file: str, shipped: Mapping[str, Path], what: str) -> Path:
    """The shipped file of that name, or the path of the user's .toml file. Raises UsageError for an unknown name."""
    if name_or_file in shipped:
        return shipped[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".toml":
        hint = did_you_mean(name_or_file, shipped)
        raise UsageError(f"unknown {what} {name_or_file!r}: {hint}; or give a .toml file.")
    return path


def shipped_toml(folder: Path, in_repository: Path | None = None) -> dict[str, Path]:
    """The TOML files that come with a package: name -> file, sorted.

    `folder` is where the wheel has them; an editable install may have them elsewhere, `in_repository`.
    """
    if in_repository is not None and not folder.is_dir():
        folder = in_repository
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def read_toml_model(path: Path, model: type[Model], what: str, overrides: Iterable[str] = ()) -> Model:
    """Reads a file into the model. If the model has a field `name` and the file does not set it, it is the file's stem.

    `overrides` of the form "table.key=value" change the file's content first (`apply_overrides`).

    Raises UsageError for a file that cannot be read, is not TOML, or does not fit the model.
    """
    content = read_toml(path, what)
    if "name" in model.model_fields:
        content = {"name": path.stem, **content}
    overrides = list(overrides)
    apply_overrides(content, overrides)
    return fit_model(content, model, f"{what} file {path}", overrides)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file. Raises UsageError if the file cannot be read or is not TOML."""
    try:
        return tomllib.loads(read_regular(path).decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{what} file {path}: {error.strerror}.") from None
    except RecursionError:
        raise UsageError(f"{what} file {path} is nested too deeply.") from None
    except ValueError as error:  # tomllib's own, text that is not UTF-8, an integer of too many digits
        raise UsageError(f"{what} file {path} is not valid TOML: {error}.") from None


def fit_model(content: Mapping[str, Any], model: type[Model], where: str, overrides: Iterable[str] = ()) -> Model:
    """Validates the content, to which `overrides` were applied.

    Raises UsageError if it does not fit. Its message begins with the overrides that set a wrong value or, if a wrong
    value is not from them, with `where`.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        places = [_place(problem["loc"]) for problem in error.errors()]
        keys = {override.partition("=")[0].strip(): override for override in overrides}
        blamed = [next((repr(keys[key]) for key in keys if _is_within(place, key)), where) for place in places]
        raise UsageError(f"{', '.join(dict.fromkeys(blamed))}: {explain(error, model)}") from None


def apply_overrides(content: dict[str, Any], overrides: Iterable[str]) -> None:
    """Applies overrides of the form "table.key=value" to the content of a TOML file, in place.

    The value is parsed as TOML; if that fails, it is a string. In a list of tables, "tables.2.key=value" changes the
    second table. Raises UsageError for an override of another form, or for a place that does not exist.
    """
    for override in overrides:
        _override(content, override)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *tables, last = key.strip().split(".")
    if not equals or not all([*tables, last]):
        raise UsageError(f"{override!r} is not an override: give KEY=VALUE, such as optim.lr=1e-4.")
    place: Any = content
    for table in tables:
        if isinstance(place, dict):
            place = place.setdefault(table, {})
        else:
            if table not in map(str, range(1, len(place) + 1)):
                raise UsageError(f"{override!r}: {table} is no number from 1 to {len(place)}.")
            place = place[int(table) - 1]
        if not isinstance(place, dict | list):
            raise UsageError(f"{override!r}: {table} is no table.")
    if isinstance(place, list):
        raise UsageError(f"{override!r}: give the number of a table and a key, such as {tables[-1]}.1.KEY=VALUE.")
    try:
        place[last] = tomllib.loads(f"value = {value}")["value"]
    except RecursionError:
        raise UsageError(f"the value of {key.strip()} is nested too deeply.") from None
    except ValueError:
        place[last] = value.strip()


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line that says why `model` rejected the settings."""
    problems: list[str] = []
    every = error.errors()
    for problem in every:
        place = _place(problem["loc"])
        # An element that is wrong does not count as one of the list.
        if problem["type"] == "too_short" and any(_place(other["loc"]).startswith(f"{place}.") for other in every):
            continue
        message = plain_problem(problem)
        if problem["type"] == "extra_forbidden":
            message = f"unknown key; {did_you_mean(str(problem['loc'][-1]), _known_keys(model, problem['loc'][:-1]))}"
        elif problem["type"] == "union_tag_invalid":
            context = problem.get("ctx", {})
            known = re.findall("'([^']+)'", context["expected_tags"])
            message = f"unknown kind {context['tag']!r}; {did_you_mean(context['tag'], known)}"
        elif problem["type"] == "union_tag_not_found":
            message = f"the key 'kind' is missing, got {', '.join(problem['input']) or 'nothing'}"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            message = f"a table is needed, got {_shown(problem['input'])}"
        elif isinstance(problem["input"], str | int | float):
            message = f"{message}, got {_shown(problem['input'])}"
        problems.append(f"{place}: {message}" if place else message)
    return "; ".join(problems)


def _shown(value: object) -> str:
    """The value, short enough for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, or a table nested too deeply
        return f"a value of {len(f'{value:x}')} hexadecimal digits" if isinstance(value, int) else "a large value"
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."


def _place(location: tuple[int | str, ...]) -> str:
    """A pydantic error location in the form of an override's key."""
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in location)


def _is_within(place: str, key: str) -> bool:
    return place == key or place.startswith(f"{key}.")


def _known_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> set[str]:
    """The keys of the table at `place`, a pydantic error location.

    An index in a list does not change the model; the tag of a union selects the model with that tag.
    """
    models = [model]
    for part in place:
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        tagged = [m for m in models if any(get_args(f.annotation) == (part,) for f in m.model_fields.values())]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or tagged or models
    return {key for m in models for key in m.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models_in(argument)]
