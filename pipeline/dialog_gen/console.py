"""What the command-line modules share: arguments that mean the same everywhere, and how results are printed."""

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DatasetOption = Annotated[str, typer.Argument(metavar="DIR", help="Folder or fsspec URL that `run --out` wrote.")]


def print_result(content: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a command's result: `content` for programs, `text` for people."""
    typer.echo(json.dumps(content, indent=2) if as_json else text)


@contextmanager
def progress_bar() -> Generator[Progress]:
    """A progress bar on stderr, where that is a terminal."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        yield progress
