"""How a command line ends: errors without a traceback, and a word on what a Ctrl-C left behind."""

import sys
from collections.abc import Callable
from typing import Any

import typer

from dialog_gen.errors import DialogGenError

_INTERRUPTED = 130


def run_app(app: Callable[[], Any], *, interrupted: str) -> None:
    """Runs a typer app and exits: with an error's own code, or with 130 after a Ctrl-C, where it says `interrupted`."""
    try:
        app()
    except DialogGenError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            typer.echo(f"interrupted: {interrupted}", err=True)
        raise
