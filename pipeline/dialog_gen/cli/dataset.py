"""The commands that read or update a dataset: status, verify, stats, report, gate, upgrade."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.core.console import DatasetOption, Json, print_result
from dialog_gen.core.progress import progress_bars


def add_dataset_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for command in (status, verify, stats, report, gate, upgrade):
        app.command()(command)


def status(directory: DatasetOption, json_output: Json = False) -> None:
    """Show what a dataset contains, according to the manifests of its shards; reads no rows."""
    folder = dialog_gen.open_dataset(directory)
    found = dialog_gen.totals(folder)
    lines = [f"{directory}: {found.images} images in {found.shards} finished shards"]
    for name in ("accepted", "rejected", "unreadable"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.reasons.get(name, {}).items())
        lines.append(f"  {name:<10} {getattr(found, name):>9}{reasons and f'   {reasons}'}")
    config = folder.config()
    lines += [f"  {key}: {config[key]}" for key in ("model", "protocol", "engine", "seed", "images") if key in config]
    lines += [f"  {problem}" for problem in found.problems]
    content = {key: value for key, value in asdict(found).items() if key not in ("problem_count", "pairs")}
    print_result({**content, "config": config}, "\n".join(lines), json_output)


def verify(directory: DatasetOption, json_output: Json = False) -> None:
    """Read a whole dataset and check checksums, schema, counts, ids and image hashes; exit 1 if anything is wrong."""
    with progress_bars() as on_progress:
        verdict = dialog_gen.verify(directory, on_progress=on_progress)
    text = "\n".join(
        [
            *verdict.problems,
            f"{directory}: {verdict.accepted} accepted + {verdict.rejected} rejected + {verdict.unreadable} unreadable "
            f"= {verdict.images} images in {verdict.shards} shards, {verdict.pairs} question-answer pairs: "
            + ("all as promised" if not verdict.problem_count else f"{verdict.problem_count} problems"),
        ]
    )
    print_result(asdict(verdict), text, json_output)
    if verdict.problem_count:
        raise typer.Exit(1)


def stats(directory: DatasetOption, json_output: Json = False) -> None:
    """Read the texts of a dataset and show common questions and answers, lengths, and what gates marked."""
    from dialog_gen.inspect.stats_text import stats_text

    with progress_bars() as on_progress:
        found = dialog_gen.stats(directory, on_progress=on_progress)
    print_result(asdict(found), f"{directory}: {stats_text(found)}", json_output)


def report(
    directory: DatasetOption,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    samples: Annotated[int, typer.Option(min=0, help="Images in the gallery, drawn at random.")] = 1000,
    seed: Annotated[int, typer.Option(help="A different seed draws different images.")] = 0,
    max_mb: Annotated[float, typer.Option(min=0.1, help="Maximum size of the page; thumbnails adapt to it.")] = 20,
) -> None:
    """Show a dataset as one self-contained HTML page: figures, distributions and a gallery with search."""
    with progress_bars() as on_progress:
        summary = dialog_gen.report(directory, out, samples=samples, seed=seed, max_mb=max_mb, on_progress=on_progress)
    typer.echo(f"{summary}\n{out}")


def gate(
    directory: DatasetOption,
    gates: Annotated[
        str,
        typer.Option(
            help="Names separated by commas (`dialog-gen gates` lists them), or text (all gates that need no model), "
            "or all; or a TOML file."
        ),
    ] = "text",
    json_output: Json = False,
) -> None:
    """Score every question-answer pair and mark doubtful ones; deletes no pairs, replaces earlier scores."""
    from dialog_gen.gates.summary import summary_text

    with progress_bars() as on_progress:
        summary = dialog_gen.gate(directory, gates, on_progress=on_progress)
    print_result(summary, summary_text(directory, summary), json_output)


def upgrade(directory: DatasetOption, json_output: Json = False) -> None:
    """Upgrade a dataset to the current version of the record, in place; run again to resume."""
    with progress_bars() as on_progress:
        summary = dialog_gen.upgrade(directory, on_progress=on_progress)
    print_result(asdict(summary), str(summary), json_output)
