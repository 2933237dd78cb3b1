"""The commands that share a dataset: compact, export, push, pull, rehydrate. `dialog_gen.cli.app` registers them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from dialog_gen.core.console import DatasetOption, Json, print_result, progress_bar
from dialog_gen.core.errors import FailedCheckError, UsageError, did_you_mean

Repo = Annotated[str, typer.Option(metavar="USER/NAME", help="Dataset repository on the Hub.")]
WithoutImages = Annotated[
    bool, typer.Option("--without-images", help="Leave the images out: url and checksums stay, see `rehydrate`.")
]


def compact(
    directory: DatasetOption,
    out: Annotated[str, typer.Option(help="Dataset folder to write or go on with.")],
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, about.")] = 500,
    without_images: WithoutImages = False,
    json_output: Json = False,
) -> None:
    """Merge a dataset's shards into larger ones, for sharing; run again to go on or to follow a dataset that grew."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.publish.compact import compact as compact_dataset

    folder = DatasetFolder.existing(directory)
    with progress_bar() as progress:
        task = progress.add_task("merging shards", total=len(folder.shards()))
        summary = compact_dataset(
            folder,
            out,
            shard_mb=shard_mb,
            images=not without_images,
            on_shard=lambda shards: progress.advance(task, shards),
        )
    print_result(asdict(summary), str(summary), json_output)


def export(
    directory: DatasetOption,
    to: Annotated[str, typer.Option(help="llava, messages, texts or webdataset.")],
    out: Annotated[str, typer.Option(help="Folder to write; must not exist.")],
    kept_only: Annotated[bool, typer.Option("--kept-only", help="Leave out pairs that a gate marked.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    json_output: Json = False,
) -> None:
    """Write the accepted dialogues in a format that other programs read."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.dataset.verify import totals
    from dialog_gen.publish.export import export as export_dataset
    from dialog_gen.publish.formats import Format

    if to not in get_args(Format):
        raise UsageError(f"--to {to}: {did_you_mean(to, get_args(Format))}.")
    if "://" in out:
        raise UsageError(f"--out {out} is not on this machine: give a local folder, and copy it from there.")
    folder = DatasetFolder.existing(directory)
    with progress_bar() as progress:
        accepted = totals(folder).accepted
        task = progress.add_task("exporting images", total=min(limit or accepted, accepted))
        summary = export_dataset(
            folder,
            Path(out),
            to=cast("Any", to),
            kept_only=kept_only,
            limit=limit,
            on_image=lambda: progress.advance(task),
        )
    print_result(asdict(summary), str(summary), json_output)


def push(
    directory: DatasetOption,
    repo: Repo,
    without_images: WithoutImages = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier, or the terms in words.")] = None,
    link_rot: Annotated[
        Path | None, typer.Option(help="A download's link_rot.json. Default: the one beside the images.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put this dataset in the place of whatever the repository holds.")
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Check sizes only, not every byte, before.")] = False,
    json_output: Json = False,
) -> None:
    """Publish a dataset on the Hugging Face Hub, with a card, in one commit; run again to go on."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.publish.push import push as push_dataset

    if licence is not None and not licence.strip():
        raise UsageError("--licence is empty: give an SPDX identifier such as cc-by-4.0, or the terms in words.")
    folder = DatasetFolder.existing(directory)
    with progress_bar() as progress:
        task = progress.add_task("checking shards", total=None)
        summary = push_dataset(
            folder,
            repo,
            without_images=without_images,
            private=private,
            licence=licence,
            link_rot=link_rot,
            message=message,
            replace=replace,
            check=not no_verify,
            on_shard=lambda shards: progress.advance(task, shards),
        )
    print_result(asdict(summary), str(summary), json_output)


def pull(
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Dataset repository on the Hub.")],
    out: Annotated[Path, typer.Option(help="Dataset folder to write or go on with.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    json_output: Json = False,
) -> None:
    """Fetch a dataset from the Hugging Face Hub and check every byte of it; run again to go on."""
    from dialog_gen.publish.pull import pull as pull_dataset

    with progress_bar() as progress:
        task = progress.add_task("checking shards", total=None)
        summary = pull_dataset(repo, out, revision=revision, on_shard=lambda shards: progress.advance(task, shards))
    print_result(asdict(summary), str(summary), json_output)


def rehydrate(
    directory: DatasetOption,
    out: Annotated[str, typer.Option(help="Dataset folder to write or go on with.")],
    threads: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 64,
    allow_loopback: Annotated[
        bool, typer.Option("--allow-loopback", help="Also fetch from servers on this machine.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Fetch the images of a dataset that was shared without them, and check each; exit 1 if not one could be had."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.dataset.verify import totals
    from dialog_gen.download.http import FetchPolicy
    from dialog_gen.publish.rehydrate import rehydrate as rehydrate_dataset

    folder = DatasetFolder.existing(directory)
    with progress_bar() as progress:
        task = progress.add_task("fetching images", total=totals(folder).images)
        summary = rehydrate_dataset(
            folder,
            out,
            policy=FetchPolicy(allow_loopback=allow_loopback),
            threads=threads,
            on_rows=lambda rows: progress.advance(task, rows),
        )
    print_result(summary.to_json(), str(summary), json_output)
    if summary.failure:
        raise FailedCheckError(summary.failure)


COMMANDS = (compact, export, push, pull, rehydrate)
