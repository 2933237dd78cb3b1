"""Makes the missing shards of a dataset anew, with the command that made it. One function per command."""

from collections.abc import Callable, Mapping
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress
from dialog_gen.dataset.command import Command, recorded_command
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.notes import RUN, Repair, json_object
from dialog_gen.executors.base import Where

Arguments = Mapping[str, Any]


def make_missing(location: str, todo: Repair, where: Where, on_progress: OnProgress) -> None:
    """Makes the shards that are missing, and leaves all others unchanged.

    `where` decides where they are made. Raises UsageError if the command is not known, or if it would give another
    configuration than that of the dataset; and the errors of the command.
    """
    folder = open_dataset(location)
    command = recorded_command(folder) or _of_older(folder)
    if command.command not in _AGAIN:
        raise UsageError(f"{location} was made by {command.command!r}, which this dialog-gen does not know.")
    _AGAIN[command.command](location, command.arguments, todo, where, on_progress)


def _run(location: str, arguments: Arguments, todo: Repair, where: Where, on_progress: OnProgress) -> None:
    from dialog_gen.generation.run import make_again

    shards = {*todo.shards, *todo.suspects}
    # Where the dataset was made does not matter.
    arguments = {**arguments, "executor": where.executor, "ray_address": where.ray_address}
    make_again(location, arguments, finished=todo.finished, shards=shards, on_progress=on_progress)


def _compact(location: str, arguments: Arguments, todo: Repair, where: Where, on_progress: OnProgress) -> None:
    from dialog_gen.dataset.joined import open_inputs
    from dialog_gen.publish.compact import merge_shards

    merge_shards(
        open_inputs(arguments["dataset"], location),
        location,
        shard_mb=arguments["shard_mb"],
        images=not arguments["without_images"],
        map_shards=where.map(),
        on_progress=on_progress,
        only_missing=True,
    )


def _merge(location: str, arguments: Arguments, todo: Repair, where: Where, on_progress: OnProgress) -> None:
    from dialog_gen.dataset.joined import open_inputs
    from dialog_gen.publish.merge import merge_datasets

    folders = open_inputs(arguments["datasets"], location)
    merge_datasets(folders, location, on_progress=on_progress, only_missing=True)


def _rehydrate(location: str, arguments: Arguments, todo: Repair, where: Where, on_progress: OnProgress) -> None:
    from dialog_gen.download.http import FetchPolicy
    from dialog_gen.publish.rehydrate import rehydrate_with

    policy, source = FetchPolicy(allow_loopback=arguments["allow_loopback"]), open_dataset(arguments["dataset"])
    threads = arguments["threads"]
    rehydrate_with(policy, source, location, threads=threads, on_progress=on_progress, only_missing=True)


def _pull(location: str, arguments: Arguments, todo: Repair, where: Where, on_progress: OnProgress) -> None:
    from dialog_gen.publish.pull import fetch_missing

    fetch_missing(location, arguments["repo"], arguments["revision"])


_AGAIN: dict[str, Callable[[str, Arguments, Repair, Where, OnProgress], None]] = {
    "run": _run,
    "compact": _compact,
    "merge": _merge,
    "rehydrate": _rehydrate,
    "pull": _pull,
}
_SETTINGS = (
    *("model", "images", "shard_size", "engine", "dtype", "max_model_len", "deterministic", "protocol"),
    *("temperature", "top_p", "max_tokens", "attempts", "seed", "max_pixels", "min_pixels", "images_per_sample"),
)


def _of_older(folder: DatasetFolder) -> Command:
    """The run that made a dataset without command.json, as far as its config.json and run.json say."""
    config = folder.config()
    for key, command in (("rehydrated", "rehydrate"), ("compacted", "compact"), ("merged", "merge")):
        if key in config:
            raise UsageError(
                f"{folder.location} has no command.json, which names the dataset it was made of: run `dialog-gen "
                f"{command}` again with the same --out."
            )
    arguments = {name: config[name] for name in _SETTINGS if name in config}
    if not {"model", "images"} <= arguments.keys():
        raise UsageError(f"{folder.location} has no command.json: run the command that made it again.")
    run = (json_object(folder, RUN) or {}).get("dataset") or {}
    return Command(command="run", arguments={**arguments, "limit": run.get("images")})
