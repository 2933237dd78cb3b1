"""The commands that show single rows of a dataset: inspect, sample."""

import random
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

import dialog_gen
from dialog_gen.cli.options import LOOKING
from dialog_gen.core.console import DatasetOption, Json, say, say_image, say_json, text_width
from dialog_gen.core.help import command

if TYPE_CHECKING:
    from dialog_gen.dataset.rows import FoundRow

_LEAST_LINES, _MOST_LINES = 8, 16
"""Lines of an image."""
_SEEDS = 10_000

NoImage = Annotated[bool, typer.Option("--no-image", help="Show text only, on a terminal, too.")]


def add_row_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for function, example in (
        (inspect, "dialog-gen inspect dialogues --image-id 00000/000000012"),
        (sample, "dialog-gen sample dialogues -n 3"),
    ):
        app.command(cls=command(example=example), rich_help_panel=LOOKING)(function)


def inspect(
    directory: DatasetOption,
    image_id: Annotated[str, typer.Option(help="The image's id: the column image_id.")],
    no_image: NoImage = False,
    json_output: Json = False,
) -> None:
    """Show the row of one image: its questions and answers, scores and marks, or why it was rejected."""
    from dialog_gen.inspect.row_text import row_json

    found = dialog_gen.find_row(directory, image_id)
    if json_output:
        say_json(row_json(found))
    else:
        _show(found, images=not no_image)


def sample(
    directory: DatasetOption,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Number of dialogues.")] = 5,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Shows the same dialogues each time. Default: others each time.")
    ] = None,
    no_image: NoImage = False,
    json_output: Json = False,
) -> None:
    """Show dialogues that are drawn at random; reads only these."""
    from dialog_gen.inspect.row_text import row_json

    drawn_with = random.randrange(_SEEDS) if seed is None else seed
    rows = dialog_gen.random_rows(directory, number, seed=drawn_with)
    if json_output:
        say_json([row_json(found) for found in rows])
        return
    for place, found in enumerate(rows):
        if place:
            say("")
        _show(found, images=not no_image)
    if seed is None:
        say(f"--seed {drawn_with} shows these again", err=True)


def _show(found: "FoundRow", *, images: bool) -> None:
    """Prints a row; on a terminal its images first, as high as the text leaves room for."""
    from dialog_gen.dataset.record import stored_images
    from dialog_gen.inspect.row_text import row_text
    from dialog_gen.sources.images import UnreadableImage, decode_image

    width = text_width()
    text = row_text(found, width=width)
    if images and width is not None:
        room = shutil.get_terminal_size().lines - text.count("\n") - 3
        for data in stored_images(found.row):
            try:
                say_image(decode_image(data), lines=min(max(room, _LEAST_LINES), _MOST_LINES))
            except UnreadableImage:
                continue  # the text says so
    say(text)
