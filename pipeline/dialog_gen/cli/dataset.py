"""The commands that read or update a dataset: status, verify, repair, stats, gate, upgrade."""

from dataclasses import asdict
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.cli.options import LOOKING, ExecutorOption, RayAddress
from dialog_gen.cli.remedies import REPAIRS, REPEATED_IDS
from dialog_gen.core.console import DatasetOption, Json, print_result
from dialog_gen.core.errors import FailedCheckError
from dialog_gen.core.help import command
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import progress_bars
from dialog_gen.core.visible import visible

_BEING_WRITTEN = "a run is writing here: shards that it has not finished are not counted"

Deep = Annotated[bool, typer.Option("--deep", help="Decode every image, too.")]


def add_dataset_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for function, example in (
        (status, "dialog-gen status dialogues"),
        (verify, "dialog-gen verify dialogues --deep"),
        (repair, "dialog-gen repair dialogues"),
        (stats, "dialog-gen stats dialogues --json"),
        (gate, "dialog-gen gate dialogues --gates length,leak,self_consistency"),
        (upgrade, "dialog-gen upgrade dialogues"),
    ):
        app.command(cls=command(example=example), rich_help_panel=LOOKING)(function)


def status(directory: DatasetOption, json_output: Json = False) -> None:
    """Show what a dataset contains, according to the manifests of its shards; reads no rows."""
    from dialog_gen.dataset.locks import is_being_written
    from dialog_gen.generation.summary import fallbacks_text, unused_line

    folder = dialog_gen.open_dataset(directory)
    found = dialog_gen.totals(folder)
    lines = [f"{directory}: {count_of(found.images, 'image')} in {count_of(found.shards, 'finished shard')}"]
    for name in ("accepted", "rejected", "unreadable"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.reasons.get(name, {}).items())
        if name == "accepted" and found.fallbacks:
            reasons = fallbacks_text(found.fallbacks)
        lines.append(f"  {name:<10} {getattr(found, name):>9}{reasons and f'   {reasons}'}")
    if found.unused:
        lines.append(unused_line(found.unused))
    config = folder.config()
    lines += [f"  {key}: {config[key]}" for key in ("model", "protocol", "engine", "seed", "images") if key in config]
    lines += [f"  {problem}" for problem in found.problems]
    if being_written := is_being_written(folder):
        lines.append(f"  {_BEING_WRITTEN}")
    content = {key: value for key, value in asdict(found).items() if key not in ("problem_count", "pairs")}
    content["being_written"] = being_written
    print_result({**content, "config": config}, "\n".join(map(visible, lines)), json_output)


def verify(
    directory: DatasetOption,
    deep: Deep = False,
    executor: ExecutorOption = "local",
    ray_address: RayAddress = None,
    json_output: Json = False,
) -> None:
    """Read a whole dataset and check checksums, schema, counts, ids and image hashes; exit 1 if anything is wrong."""
    from dialog_gen.generation.summary import fallbacks_text, unused_line

    with progress_bars() as on_progress:
        verdict = dialog_gen.verify(
            directory, deep=deep, executor=executor, ray_address=ray_address, on_progress=on_progress
        )
    is_repairable = verdict.problem_count > verdict.repeated_ids
    text = "\n".join(
        [
            *([f"{visible(directory)}: {_BEING_WRITTEN}"] if verdict.being_written else []),
            *map(visible, verdict.problems),
            f"{visible(directory)}: {verdict.accepted} accepted + {verdict.rejected} rejected + {verdict.unreadable} "
            f"unreadable = {count_of(verdict.images, 'image')} in {count_of(verdict.shards, 'shard')}, "
            f"{count_of(verdict.pairs, 'question-answer pair')}: "
            + ("all as promised" if not verdict.problem_count else count_of(verdict.problem_count, "problem")),
            *([f"  accepted {fallbacks_text(verdict.fallbacks)}"] if verdict.fallbacks else ()),
            *([unused_line(verdict.unused)] if verdict.unused else ()),
            *(
                [f"`dialog-gen repair {visible(directory)}{' --deep' if deep else ''}` {REPAIRS}"]
                if is_repairable
                else []
            ),
            *([REPEATED_IDS] if verdict.repeated_ids else []),
        ]
    )
    print_result(asdict(verdict), text, json_output)
    if verdict.problem_count:
        raise typer.Exit(1)


def repair(
    directory: DatasetOption,
    deep: Deep = False,
    executor: ExecutorOption = "local",
    ray_address: RayAddress = None,
    json_output: Json = False,
) -> None:
    """Set aside what is damaged in a dataset, and make just that anew; exit 1 if anything is still wrong."""
    with progress_bars() as on_progress:
        summary = dialog_gen.repair(
            directory, deep=deep, executor=executor, ray_address=ray_address, on_progress=on_progress
        )
    print_result(asdict(summary), str(summary), json_output)
    if summary.problem is not None:
        raise FailedCheckError(summary.problem)


def stats(directory: DatasetOption, json_output: Json = False) -> None:
    """Read the texts of a dataset and show common questions and answers, lengths, and what gates marked."""
    from dialog_gen.inspect.stats_text import stats_text

    with progress_bars() as on_progress:
        found = dialog_gen.stats(directory, on_progress=on_progress)
    print_result(asdict(found), f"{directory}: {stats_text(found)}", json_output)


def gate(
    directory: DatasetOption,
    gates: Annotated[
        str,
        typer.Option(
            help="Names separated by commas (`dialog-gen gates` lists them), or text (all gates that need no model), "
            "or all; or a TOML file."
        ),
    ] = "text",
    executor: ExecutorOption = "local",
    ray_address: RayAddress = None,
    json_output: Json = False,
) -> None:
    """Score every question-answer pair and mark doubtful ones; deletes no pairs, replaces earlier scores."""
    from dialog_gen.gates.summary import summary_text

    with progress_bars() as on_progress:
        summary = dialog_gen.gate(directory, gates, executor=executor, ray_address=ray_address, on_progress=on_progress)
    print_result(summary, summary_text(directory, summary), json_output)


def upgrade(directory: DatasetOption, json_output: Json = False) -> None:
    """Upgrade a dataset to the current version of the record, in place; run again to resume."""
    with progress_bars() as on_progress:
        summary = dialog_gen.upgrade(directory, on_progress=on_progress)
    print_result(asdict(summary), str(summary), json_output)
