"""The commands that publish a dataset: compact, export, push, pull, rehydrate."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.core.console import AllowLoopback, DatasetOption, Json, command_with_help, print_result
from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.progress import progress_bars

Repo = Annotated[str, typer.Option(metavar="USER/NAME", help="Dataset repository on the Hub.")]
WithoutImages = Annotated[
    bool, typer.Option("--without-images", help="Leave out the images; url and checksums stay, for `rehydrate`.")
]


def add_publish_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    app.command()(compact)
    app.command(cls=command_with_help(to=_formats_help))(export)
    app.command()(push)
    app.command()(pull)
    app.command()(rehydrate)


def compact(
    directory: DatasetOption,
    out: Annotated[str, typer.Option(help="Dataset folder to write, or to resume.")],
    shard_mb: Annotated[int, typer.Option(min=1, help="Approximate size of a shard.")] = 500,
    without_images: WithoutImages = False,
    json_output: Json = False,
) -> None:
    """Merge a dataset's shards into larger ones for publishing; run again to resume or after the dataset grew."""
    with progress_bars() as on_progress:
        summary = dialog_gen.compact(
            directory, out, shard_mb=shard_mb, without_images=without_images, on_progress=on_progress
        )
    print_result(asdict(summary), str(summary), json_output)


def export(
    directory: DatasetOption,
    to: Annotated[str, typer.Option(help="Format.")],
    out: Annotated[str, typer.Option(help="Folder to write; must not exist.")],
    kept_only: Annotated[bool, typer.Option("--kept-only", help="Leave out pairs that a gate marked.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    json_output: Json = False,
) -> None:
    """Write the accepted dialogues in a format that other programs read."""
    with progress_bars() as on_progress:
        summary = dialog_gen.export(directory, out, to=to, kept_only=kept_only, limit=limit, on_progress=on_progress)
    print_result(asdict(summary), str(summary), json_output)


def _formats_help() -> str:
    """The export formats with their descriptions; only the name if a format's package cannot be imported."""
    from dialog_gen.publish.formats.base import FORMATS

    def text(name: str) -> str:
        try:
            return f"{name}: {FORMATS.get(name).description}"
        except UsageError:
            return name

    return f"{'; '.join(map(text, FORMATS.names()))}."


def push(
    directory: DatasetOption,
    repo: Repo,
    without_images: WithoutImages = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier, or the terms in words.")] = None,
    link_rot: Annotated[
        Path | None, typer.Option(help="A download's link_rot.json. Default: the one in the folder of the images.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace all content of the repository with this dataset.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Check only file sizes before the upload, not every byte.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub, with a card, in one commit; run again to resume."""
    with progress_bars() as on_progress:
        summary = dialog_gen.push(
            directory,
            repo,
            without_images=without_images,
            private=private,
            licence=licence,
            link_rot=link_rot,
            message=message,
            replace=replace,
            verify=not no_verify,
            on_progress=on_progress,
        )
    print_result(asdict(summary), str(summary), json_output)


def pull(
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Dataset repository on the Hub.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write, or to resume.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    json_output: Json = False,
) -> None:
    """Fetch a dataset from the Hugging Face Hub and check every byte of it; run again to resume."""
    with progress_bars() as on_progress:
        summary = dialog_gen.pull(repo, out, revision=revision, on_progress=on_progress)
    print_result(asdict(summary), str(summary), json_output)


def rehydrate(
    directory: DatasetOption,
    out: Annotated[str, typer.Option(help="Dataset folder to write, or to resume.")],
    threads: Annotated[int, typer.Option(min=1, help="Number of requests at a time.")] = 64,
    allow_loopback: AllowLoopback = False,
    json_output: Json = False,
) -> None:
    """Fetch the images of a dataset that was published without them, and check each; exit 1 if none can be fetched."""
    with progress_bars() as on_progress:
        summary = dialog_gen.rehydrate(
            directory, out, threads=threads, allow_loopback=allow_loopback, on_progress=on_progress
        )
    print_result(summary.to_json(), str(summary), json_output)
    if summary.failure:
        raise FailedCheckError(summary.failure)
