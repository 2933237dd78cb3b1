"""What the command-line modules share: common arguments, how results are printed, and how errors end a command."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperCommand, TyperGroup, TyperOption

from dialog_gen.core.errors import DialogGenError, UsageError, did_you_mean
from dialog_gen.core.version import __version__

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]
AllowLoopback = Annotated[bool, typer.Option("--allow-loopback", help="Also fetch from servers on this machine.")]
DatasetOption = Annotated[str, typer.Argument(metavar="DIR", help="Folder or fsspec URL that `run --out` wrote.")]


_INTERRUPTED = 130


def begin(context: typer.Context, version: bool) -> None:
    """Starts a command line: sets up logging to stderr.

    Prints the version and exits with 0 if `version` is set; without a subcommand, prints the help and exits with 2.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def command_with_help(**texts: Callable[[], str]) -> type[TyperCommand]:
    """A class for `app.command(cls=...)` whose help texts are made when help is shown.

    `texts` maps the name of a parameter to a function that returns its help text. This is for texts that list the
    content of a registry: the registry's modules are imported only when somebody asks for help.
    """

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            for parameter in self.params:
                if parameter.name in texts and isinstance(parameter, TyperOption):
                    parameter.help = texts[parameter.name]()
            super().format_help(ctx, formatter)

    return Command


def group_of(kind: str) -> type[TyperGroup]:
    """A class for `typer.Typer(cls=...)` that answers an unknown command, a `kind`, with the known ones in one line."""

    class Group(TyperGroup):
        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            """Raises UsageError for an unknown command."""
            if args and not args[0].startswith("-") and args[0] not in self.commands:
                raise UsageError(f"unknown {kind} {args[0]!r}; {did_you_mean(args[0], self.commands)}.")
            return super().resolve_command(ctx, args)

    return Group


def print_result(content: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a command's result: `content` for programs, `text` for people."""
    typer.echo(json.dumps(content, indent=2) if as_json else text)


def run_app(app: Callable[[], Any], *, interrupted: str, explain: Callable[[DialogGenError], str] = str) -> None:
    """Runs a typer app. Exits with the code of a `DialogGenError`, or with 130 after Ctrl-C.

    `interrupted` is the message after Ctrl-C; `explain` returns the message of an error.
    """
    try:
        app()
    except DialogGenError as error:
        typer.echo(f"error: {explain(error)}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            typer.echo(f"interrupted: {interrupted}", err=True)
        raise
