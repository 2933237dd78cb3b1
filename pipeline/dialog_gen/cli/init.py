"""The command that begins a project: init."""

import os
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from dialog_gen.cli.config import config_text
from dialog_gen.cli.generate import RUN_GROUPS, run
from dialog_gen.cli.options import MAKING
from dialog_gen.core.console import say
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_file, writing
from dialog_gen.core.help import command

_EXAMPLE = """\
dialog-gen init my-dialogues
dialog-gen init my-dialogues --model llava-1.5-7b --images photos/"""
_EMBEDDED_MODEL, _EMBEDDED_IMAGES = "shapes-llava", "download/images"
_CONFIG, _PROTOCOL = "run.toml", "protocol.toml"
_ABOUT_PROTOCOL = """\
# What the model is asked about each image, and how its answers are read: a copy of the protocol {name}.
# `dialog-gen run --config {config} --dry-run` shows the prompts as the model gets them.

"""


def add_init_command(app: typer.Typer) -> None:
    """Adds the command of this module to the command line."""
    app.command(cls=command(example=_EXAMPLE), rich_help_panel=MAKING)(init)


def init(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder for the project. Default: the current one.", show_default=False),
    ] = Path(),
    model: Annotated[
        str, typer.Option(help="Name (see `dialog-gen models`), Hugging Face id or folder.")
    ] = _EMBEDDED_MODEL,
    images: Annotated[
        str | None,
        typer.Option(help="Webdataset tars, image files or Parquet. Default: what the project's Makefile downloads."),
    ] = None,
) -> None:
    """Write a small project: a file with all flags of `run`, a protocol, a Makefile; overwrites nothing."""
    name = _protocol_of(model)
    values = {
        "model": _from(directory, model) if Path(model).is_dir() else model,
        "images": _EMBEDDED_IMAGES if images is None else _from(directory, images),
        "out": "dialogues",
        "protocol": _PROTOCOL,
    }
    contents = {
        _CONFIG: config_text(run, command="dialog-gen run", file=_CONFIG, groups=RUN_GROUPS, values=values),
        _PROTOCOL: _ABOUT_PROTOCOL.format(name=name, config=_CONFIG) + _protocol_text(name),
        "Makefile": _template("Makefile"),
        ".gitignore": _template("gitignore"),
    }
    if there := [file for file in contents if os.path.lexists(directory / file)]:
        raise UsageError(
            f"{directory} has {', '.join(there)} already, and nothing was written: choose another folder, or move "
            "what is there."
        )
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in contents.items():
            write_file(directory / file, text.encode())
    step = "make download run" if images is None else "make run"
    enter = "" if directory == Path() else f"cd {shlex.quote(str(directory))} && "
    say(
        f"{directory}: {', '.join(contents)}\n"
        f"{_CONFIG} holds every flag of `dialog-gen run`. Next: `{enter}{step}`, then `make gate report export`."
    )


def _from(directory: Path, path: str) -> str:
    """A path of the current folder as one of the project's; URLs and absolute paths stay."""
    if "://" in path or Path(path).is_absolute():
        return path
    return os.path.relpath(path, directory) + ("/" if path.endswith("/") else "")


def _protocol_of(model: str) -> str:
    from dialog_gen.models.architectures import Architecture
    from dialog_gen.models.registry import MODELS

    return MODELS.get(model).protocol if model in MODELS.names() else Architecture().protocol


def _protocol_text(name: str) -> str:
    from dialog_gen.protocols.protocol import shipped_protocols

    return shipped_protocols()[name].read_text(encoding="utf-8")


def _template(name: str) -> str:
    return files("dialog_gen.cli").joinpath("project", name).read_text(encoding="utf-8")
