"""Options of evaluations: dataclasses whose fields become typer options. Imports nothing slow, to keep --help fast."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import TypeAdapter, ValidationError
from typer.models import OptionInfo

from dialog_gen.core.errors import UsageError, did_you_mean

_Options = TypeVar("_Options")

MOST_EXAMPLES = 50
"""Largest number of wins, and of losses, that results keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options of all evaluations."""

    checkpoint: Annotated[str, typer.Option(help="Model to measure: a checkpoint folder, or a name.")]
    images: Annotated[str, typer.Option(help="Webdataset tars, image files or Parquet: a folder, glob or fsspec URL.")]
    pretrained: Annotated[
        str | None, typer.Option(help="Tag or safetensors file, if --checkpoint is open_clip's name of a model.")
    ] = None
    label: Annotated[str | None, typer.Option(help="Row label of the checkpoint. Default: its name.")] = None
    beta: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="If --checkpoint has a third tower: the share of the text tower; 0 is the third tower alone. "
            "Default: the checkpoint's own.",
        ),
    ] = None
    baseline: Annotated[str | None, typer.Option(help="Model to compare with: a checkpoint folder, or a name.")] = None
    baseline_pretrained: Annotated[str | None, typer.Option(help="Like --pretrained, for the baseline.")] = None
    baseline_label: Annotated[str | None, typer.Option(help="Row label of the baseline. Default: its name.")] = None
    allow_activation_mismatch: Annotated[
        bool,
        typer.Option("--allow-activation-mismatch", help="Load weights that were trained with another activation."),
    ] = False
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: cuda if it is available.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images, and of texts, per batch.")] = 256
    examples: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_EXAMPLES,
            help="With --baseline: keep so many items that only the model has right, and so many that only the "
            "baseline has, with small images, for the page of `dialog-eval table`.",
        ),
    ] = 6


def parameters_of(options_type: type[Any]) -> dict[str, inspect.Parameter]:
    """The fields of a dataclass of options as parameters of a command."""
    hints = get_type_hints(options_type, include_extras=True)
    signature = inspect.signature(options_type)
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in signature.parameters.items()
    }


def required_options(options_type: type[Any]) -> list[str]:
    """The names of the options that have no default."""
    return [name for name, parameter in parameters_of(options_type).items() if parameter.default is parameter.empty]


def flag_of(name: str) -> str:
    """The flag of an option, such as --captions-per-image."""
    return "--" + name.replace("_", "-")


def option_info(annotation: Any) -> OptionInfo | None:
    """The typer option in an annotation, or None."""
    return next((told for told in getattr(annotation, "__metadata__", ()) if isinstance(told, OptionInfo)), None)


def make_options(options_type: type[_Options], given: Mapping[str, Any], what: str) -> _Options:
    """Validates values and converts them to options; `what` names what needs them in errors, such as "vqa".

    Raises UsageError for an unknown or missing option, and for a value of another type, out of bounds or not UTF-8.
    """
    known = parameters_of(options_type)
    for name in given:
        if name not in known:
            raise UsageError(f"{what} has no option {name!r}; {did_you_mean(name, known)}.")
    if missing := [name for name in required_options(options_type) if given.get(name) is None]:
        raise UsageError(f"{what} needs the option {missing[0]!r} ({flag_of(missing[0])}).")
    try:
        made = TypeAdapter(options_type).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{what}: option {first['loc'][0]!r}: {first['msg']}, got {first['input']!r}.") from None
    for name, parameter in known.items():
        info, value = option_info(parameter.annotation), getattr(made, name)
        if isinstance(value, str) and not _is_utf8(value):
            raise UsageError(f"{what}: option {name!r} is no UTF-8, so the results cannot record it, got {value!r}.")
        if info is None or not isinstance(value, int | float):
            continue
        for bound, wrong in ((info.min, "at least"), (info.max, "at most")):
            if bound is not None and (value < bound if wrong == "at least" else value > bound):
                raise UsageError(f"{what}: option {name!r} must be {wrong} {bound:g}, got {value!r}.")
    return made


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
