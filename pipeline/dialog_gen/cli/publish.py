"""The commands that make datasets of others, and publish them: merge, compact, export, push, card, pull,
rehydrate.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.cli.options import SHARING, ExecutorOption, RayAddress
from dialog_gen.core.console import AllowLoopback, DatasetOption, Json, print_result, say, text_width
from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import write_file
from dialog_gen.core.help import command
from dialog_gen.core.progress import progress_bars
from dialog_gen.publish.markdown import card_parts

_LOOKED_AT = ("Counts", "How it was made", "Quality gates", "Images", "Licence", "Known contamination")
"""The parts of a card that a terminal gets."""

Repo = Annotated[
    str,
    typer.Option(
        metavar="USER/NAME", help="Dataset repository on the Hub; or a storage bucket, such as hf://buckets/USER/NAME."
    ),
]
Licence = Annotated[str | None, typer.Option(help="SPDX identifier, or the terms in words.")]
LinkRot = Annotated[
    Path | None, typer.Option(help="A download's link_rot.json. Default: the one in the folder of the images.")
]
DatasetsOption = Annotated[
    list[str], typer.Argument(metavar="DIR", help="Folders or fsspec URLs that `run --out` wrote.")
]
WithoutImages = Annotated[
    bool, typer.Option("--without-images", help="Leave out the images; url and checksums stay, for `rehydrate`.")
]


def add_publish_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for function, example, texts in (
        (merge, "dialog-gen merge part-0 part-1 --out dialogues", {}),
        (compact, "dialog-gen compact dialogues --out published --shard-mb 500", {}),
        (export, "dialog-gen export dialogues --to llava --out for-llava --kept-only", {"to": _formats_help}),
        (push, "dialog-gen push published --repo me/photo-dialogues --licence cc-by-4.0", {}),
        (card, "dialog-gen card published --repo me/photo-dialogues --licence cc-by-4.0", {}),
        (pull, "dialog-gen pull me/photo-dialogues --out dialogues", {}),
        (rehydrate, "dialog-gen rehydrate dialogues --out with-images", {}),
    ):
        app.command(cls=command(example=example, texts=texts), rich_help_panel=SHARING)(function)


def merge(
    directories: DatasetsOption,
    out: Annotated[str, typer.Option(help="Dataset folder to write, to resume or to extend.")],
    json_output: Json = False,
) -> None:
    """Join datasets of one configuration, without changing their rows; run again to resume or to add datasets."""
    with progress_bars() as on_progress:
        summary = dialog_gen.merge(directories, out, on_progress=on_progress)
    print_result(asdict(summary), str(summary), json_output)


def compact(
    directories: DatasetsOption,
    out: Annotated[str, typer.Option(help="Dataset folder to write, or to resume.")],
    shard_mb: Annotated[int, typer.Option(min=1, help="Approximate size of a shard.")] = 500,
    without_images: WithoutImages = False,
    executor: ExecutorOption = "local",
    ray_address: RayAddress = None,
    json_output: Json = False,
) -> None:
    """Merge the shards of one or several datasets into larger ones; run again to resume or after they grew."""
    with progress_bars() as on_progress:
        summary = dialog_gen.compact(
            directories,
            out,
            shard_mb=shard_mb,
            without_images=without_images,
            executor=executor,
            ray_address=ray_address,
            on_progress=on_progress,
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
    licence: Licence = None,
    link_rot: LinkRot = None,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Show 24 images in the card; only if their licence allows that.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace all content of the repository with this dataset.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Check only file sizes before the upload, not every byte.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, but send nothing; needs no token.")
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
            thumbnails=thumbnails,
            replace=replace,
            verify=not no_verify,
            dry_run=dry_run,
            on_progress=on_progress,
        )
    print_result(asdict(summary), str(summary), json_output)
    if licence is None:
        say("The card says that the licence is not stated: --licence states one.", err=True)


def card(
    directory: DatasetOption,
    repo: Repo = "USER/NAME",
    without_images: WithoutImages = False,
    licence: Licence = None,
    link_rot: LinkRot = None,
    out: Annotated[Path | None, typer.Option(help="Write the card into this file, such as card.md.")] = None,
) -> None:
    """Print the dataset card that `push` would publish; needs no token and no network.

    A terminal gets the parts that are worth a look before a push; a pipe or a file, the whole card.
    """
    text = dialog_gen.card(directory, repo, licence=licence, link_rot=link_rot, without_images=without_images)
    if out is not None:
        write_file(out, text.encode())
        say(out)
    elif text_width() is None:
        say(text.removesuffix("\n"))
    else:
        say("\n\n".join(card_parts(text, _LOOKED_AT)))
        say(f"These are parts of a card of {text.count(chr(10))} lines: --out card.md writes all of it.", err=True)


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
