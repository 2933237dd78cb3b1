"""The commands that show a dataset, or two, as a page: report and view."""

from pathlib import Path
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.cli.options import LOOKING
from dialog_gen.core.console import DatasetOption, say
from dialog_gen.core.help import command
from dialog_gen.core.progress import progress_bars

Compare = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A second dataset: show both side by side, on the images that both have."),
]
Samples = Annotated[int, typer.Option(min=0, help="Images in the gallery, drawn at random.")]
Seed = Annotated[int, typer.Option(help="A different seed draws different images.")]
MaxMb = Annotated[float, typer.Option(min=0.1, help="Maximum size of the page; thumbnails adapt to it.")]


def add_look_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for function, example in (
        (report, "dialog-gen report dialogues --out report.html\ndialog-gen report a --compare b --out report.html"),
        (view, "dialog-gen view dialogues"),
    ):
        app.command(cls=command(example=example), rich_help_panel=LOOKING)(function)


def report(
    directory: DatasetOption,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    compare: Compare = None,
    samples: Samples = 1000,
    seed: Seed = 0,
    max_mb: MaxMb = 20,
) -> None:
    """Show a dataset, or two, as one self-contained HTML page: a verdict, figures, and a gallery to search and sort."""
    with progress_bars() as on_progress:
        summary = dialog_gen.report(
            directory, out, compare=compare, samples=samples, seed=seed, max_mb=max_mb, on_progress=on_progress
        )
    say(f"{summary}\n{out}")


def view(
    directory: DatasetOption, compare: Compare = None, samples: Samples = 1000, seed: Seed = 0, max_mb: MaxMb = 20
) -> None:
    """Make the report of a dataset and open it in a browser; without a display, print where it is."""
    with progress_bars() as on_progress:
        summary = dialog_gen.view(
            directory, compare=compare, samples=samples, seed=seed, max_mb=max_mb, on_progress=on_progress
        )
    say(summary)
