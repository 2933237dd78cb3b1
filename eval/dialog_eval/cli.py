"""The command line: `dialog-eval COMMAND`. Results are printed to stdout, everything else to stderr.

Each registered task (`dialog_eval.tasks.base`) becomes a command. `sweep` measures several of them for blends, and
`table` shows results.

Exit codes: 0 all done; 2 wrong use; 130 Ctrl-C.
"""

import inspect
import json
import logging
import sys
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.console import Console
from rich.table import Table
from typer.models import OptionInfo

from dialog_eval.options import Common, flag_of, option_info, parameters_of, required_options
from dialog_eval.results import Blend, Metric, Results, check_writable
from dialog_eval.tasks.base import TASKS, TaskDefinition, get_task
from dialog_gen.core.console import Json, Version, begin, group_of, run_app
from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import progress_bars

# Commands import slow packages themselves, so that `dialog-eval --help` does not wait for torch.


app = typer.Typer(cls=group_of("command"), no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_log = logging.getLogger(__name__)

_Parameters = dict[str, inspect.Parameter]


def main() -> None:
    """Runs the command line and exits."""
    run_app(app, interrupted="nothing was written")


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Version = False,
) -> None:
    """Measure CLIP-like models on retrieval, VQA and zero-shot classification."""
    begin(context, version)


def _output(
    out: Annotated[Path, typer.Option(help="The results.json to write.")],
    json_output: Json = False,
) -> None:
    """Options that the commands of all evaluations have and the API does not need."""


def _add_command(name: str, description: str, own: _Parameters, run: Callable[[dict[str, Any]], None]) -> None:
    """Adds a command with the options of all evaluations and its own; it calls `run` with their values."""
    shared = [*parameters_of(Common).values(), *inspect.signature(_output).parameters.values()]
    shared.sort(key=lambda parameter: parameter.default is not parameter.empty)
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*shared, *own.values())]

    def command(**given: Any) -> None:
        run(given)

    # Typer reads the options from these two attributes.
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    app.command(name, help=description)(command)


def _add_broken_command(name: str, error: UsageError) -> None:
    """Adds a command for a task that cannot be imported; it reports the reason."""

    def command(context: typer.Context) -> None:
        raise error

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, help="Cannot be used: its package cannot be imported.", context_settings=settings)(command)


def _evaluate(tasks: Sequence[str], given: dict[str, Any], blends: Sequence[tuple[Blend, float]] | None = None) -> None:
    """Measures the tasks, prints the results and writes them."""
    from dialog_eval.api import evaluate

    out, as_json = given.pop("out"), given.pop("json_output")
    check_writable(out)
    with progress_bars() as on_progress:
        results = evaluate(tasks, **given, blends=blends, on_progress=on_progress)
    if cut := results.settings["truncated_texts"]:
        _log.warning("%d of %d texts were cut to the model's context", cut, results.settings["texts"])
    # Printed before the file is written: if writing fails, the results of hours of work are not lost.
    if as_json:
        typer.echo(json.dumps(_without_items(results), indent=2))
    else:
        _print_tables(results)
    results.save(out)


def _add_tasks() -> None:
    """Adds the commands of the tasks, and `sweep`."""
    swept: dict[str, type[TaskDefinition[Any]]] = {}
    # Sorted, because the registry's order depends on the order of imports.
    for name in sorted(TASKS.names()):
        try:
            task = get_task(name)
        except UsageError as error:
            _add_broken_command(name, error)
            continue
        _add_command(name, task.description, parameters_of(task.options_type), partial(_evaluate, [name]))
        if task.in_sweep:
            swept[name] = task
    _add_sweep(swept)


_SWEEP = """Retrieval, VQA or both for blends of the checkpoint with the baseline, in one pass.

A checkpoint with a third tower is blended as that alone; its own text tower is the baseline where none is given."""


def _blending(
    betas: Annotated[
        str, typer.Option(help="Shares of the baseline. Baseline (1) and checkpoint (0) are always measured.")
    ] = "1,0.95,0.9,0.8,0.6,0",
    blend: Annotated[
        Literal["embedding", "weight", "both"],
        typer.Option(help="Blend text vectors, weights of the text tower, or both."),
    ] = "both",
) -> list[tuple[Blend, float]]:
    """The blends that a sweep measures between baseline and checkpoint. Raises UsageError for invalid shares."""
    shares = _betas(betas)
    kinds: list[Blend] = ["embedding", "weight"] if blend == "both" else [blend]
    return [(kind, beta) for kind in kinds for beta in shares]


def _add_sweep(tasks: dict[str, type[TaskDefinition[Any]]]) -> None:
    """Adds the command `sweep`, with the options of all tasks; it measures those whose required options are given."""
    blending = inspect.signature(_blending).parameters
    options = {name: parameters_of(task.options_type) for name, task in tasks.items()}
    required = {name: required_options(task.options_type) for name, task in tasks.items()}
    own: _Parameters = {}
    for name, parameters in options.items():
        first = f"For {name}: "
        for option, parameter in parameters.items():
            own[option] = _optional(parameter, first) if option in required[name] else parameter
    own |= blending

    def run(given: dict[str, Any]) -> None:
        blends = _blending(**{name: given.pop(name) for name in blending})
        chosen: list[str] = []
        for name, needed in required.items():
            there = [option for option in needed if given[option] is not None]
            if there and there != needed:
                raise UsageError(f"{name} needs both {' and '.join(map(flag_of, needed))}.")
            if there:
                chosen.append(name)
        if not chosen:
            ways = ", or ".join(" and ".join(map(flag_of, needed)) for needed in required.values())
            raise UsageError(f"nothing to measure: give {ways}.")
        others = {option for name in options if name not in chosen for option in options[name]}
        unused = others - {option for name in chosen for option in options[name]}
        _evaluate(chosen, {option: value for option, value in given.items() if option not in unused}, blends)

    _add_command("sweep", _SWEEP, own, run)


def _optional(parameter: inspect.Parameter, begin: str) -> inspect.Parameter:
    """Makes a required option optional and puts `begin` before its help text."""
    kind, *told = get_args(parameter.annotation)
    info = copy(option_info(parameter.annotation))
    if info is not None:
        info.help = f"{begin}{info.help}"
        told = [info if isinstance(one, OptionInfo) else one for one in told]
    annotation: Any = Annotated[(kind | None, *told)]  # type: ignore[valid-type] - made for typer to read
    return parameter.replace(annotation=annotation, default=None)


_add_tasks()


@app.command()
def table(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json...", help="Files that the other commands wrote.")
    ],
    out: Annotated[Path, typer.Option(help="The table to write: .md or .html.")],
    plot: Annotated[Path | None, typer.Option(help="Also plot the sweep, into this PNG.")] = None,
) -> None:
    """Put results into one table, with the differences to the baseline."""
    from dialog_eval.api import write_table

    write_table(results, out, plot)


def _betas(text: str) -> list[float]:
    """Parses the shares; duplicates and the ends 0 and 1 are left out, since those are not blends."""
    try:
        betas = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--betas {text}: give numbers from 0 to 1, with commas between them.") from None
    if wrong := [beta for beta in betas if not 0 <= beta <= 1]:
        raise UsageError(f"--betas {text}: {wrong[0]:g} is no share of the baseline; give numbers from 0 to 1.")
    return [beta for beta in dict.fromkeys(betas) if 0 < beta < 1]


def _without_items(results: Results) -> dict[str, Any]:
    """The content of results.json without the values of single items."""
    return results.model_dump(
        mode="json", exclude={"entries": {"__all__": {"metrics": {"__all__": {"values", "groups"}}}}}
    )


def _print_tables(results: Results) -> None:
    """Prints one table per task and dataset: means in percent, with their 95 % intervals."""
    # A fixed, large width for pipes, so that a piped table is not cut.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    tasks = groupby(results.entries, lambda entry: (entry.task, entry.dataset))
    for (task, dataset), group in tasks:
        entries = list(group)
        names = [metric.name for metric in entries[0].metrics]
        console.print(f"{task}: {dataset}, {entries[0].protocol} (%, 95 % interval)")
        table = Table("", *names, box=None, pad_edge=False, header_style="bold")
        for entry in entries:
            table.add_row(entry.label, *(_percent(entry.metric(name)) for name in names))
        references = [r for r in results.references if (r.task, r.dataset) == (task, dataset)]
        for name in dict.fromkeys(reference.name for reference in references):
            values = {r.metric: f"{r.value:.1%}".rstrip("%") for r in references if r.name == name}
            table.add_row(name, *(values.get(metric, "") for metric in names))
        console.print(table)


def _percent(metric: Metric | None) -> str:
    return "" if metric is None else f"{100 * metric.mean:.1f} [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"


if __name__ == "__main__":
    main()
