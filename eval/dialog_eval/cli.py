"""The command line: `dialog-eval COMMAND`. Results are printed to stdout, everything else to stderr.

Each registered task (`dialog_eval.tasks.base`) becomes a command. `sweep` measures several of them for blends, and
`table` shows results. `reproduce` runs the plan of a study.

Exit codes: 0 all done; 1 steps of a plan failed; 2 wrong use; 130 Ctrl-C.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer.models import OptionInfo

from dialog_eval.metrics.intervals import paired_bootstrap
from dialog_eval.options import Common, flag_of, option_info, parameters_of, required_options
from dialog_eval.results import Blend, Entry, Metric, Results, check_writable
from dialog_eval.tables.trainings import trainings
from dialog_eval.tasks.base import TASKS, Presentation, TaskDefinition, get_task, presentation_of
from dialog_gen.core.console import Json, Version, log_to_stderr, run_app, say, say_json, say_table
from dialog_gen.core.errors import UsageError
from dialog_gen.core.help import command as command_class
from dialog_gen.core.help import new_app
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import progress_bars
from dialog_gen.core.visible import visible, visible_lines

# Commands import slow packages themselves, so that `dialog-eval --help` does not wait for torch.


app = new_app()

_log = logging.getLogger(__name__)

_Parameters = dict[str, inspect.Parameter]


def main() -> None:
    """Runs the command line and exits."""
    goes_on = sys.argv[1:2] == ["reproduce"]
    kept = "what is finished is kept, the same command goes on from there" if goes_on else "no file is half written"
    run_app(app, interrupted=kept)


@app.callback()
def common(version: Version = False) -> None:
    """Measure CLIP-like models on retrieval, VQA and zero-shot classification."""
    log_to_stderr()


def _output(
    out: Annotated[Path, typer.Option(help="The results.json to write.")],
    json_output: Json = False,
) -> None:
    """Options that the commands of all evaluations have and the API does not need."""


def _add_command(
    name: str, description: str, example: str, own: _Parameters, run: Callable[[dict[str, Any]], object]
) -> None:
    """Adds a command with the options of all evaluations and its own; it calls `run` with their values."""
    shared = [*parameters_of(Common).values(), *inspect.signature(_output).parameters.values()]
    shared.sort(key=lambda parameter: parameter.default is not parameter.empty)
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*shared, *own.values())]

    def command(**given: Any) -> None:
        run(given)

    # Typer reads the options from these two attributes.
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    groups = {"Options of all evaluations": [parameter.name for parameter in shared]}
    app.command(name, cls=command_class(example=example, groups=groups), help=visible_lines(description))(command)


def _add_broken_command(name: str, error: UsageError) -> None:
    """Adds a command for a task that cannot be imported; it reports the reason."""

    def command(context: typer.Context) -> None:
        raise error

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, help="Cannot be used: its package cannot be imported.", context_settings=settings)(command)


def _evaluate(
    tasks: Sequence[str], given: dict[str, Any], blends: Sequence[tuple[Blend, float]] | None = None
) -> Results:
    """Measures the tasks, prints the results and writes them."""
    from dialog_eval.api import evaluate

    out, as_json = given.pop("out"), given.pop("json_output")
    check_writable(out)
    with progress_bars() as on_progress:
        results = evaluate(tasks, **given, blends=blends, on_progress=on_progress)
    if cut := results.settings["truncated_texts"]:
        texts = count_of(results.settings["texts"], "text")
        _log.warning("cut to the model's context: %d of %s", cut, texts)
    for trained in trainings([results]):
        if trained.trained_on_tests:
            _log.warning("%s was trained on test images: %s Measure on others.", trained.label, trained.test_images)
    # Whether one of the two fails or not, the other is done: the results of hours of work are not lost.
    try:
        results.save(out)
    finally:
        if as_json:
            say_json(_without_items(results))
        else:
            _print_tables(results)
    return results


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
        _add_command(name, task.description, task.example, parameters_of(task.options_type), partial(_evaluate, [name]))
        if task.in_sweep:
            swept[name] = task
    _add_sweep(swept)


_SWEEP = """Retrieval, VQA or both for blends of the checkpoint with the baseline, in one pass.

A checkpoint with a third tower is blended as that alone; its own text tower is the baseline where none is given."""

_SWEEP_EXAMPLE = (
    "dialog-eval sweep --checkpoint draft/model --baseline ViT-B-32 --baseline-pretrained openai --images val2014/ "
    "--captions captions_val2014.json --out sweep.json"
)


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


def _choosing(
    choose: Annotated[
        Path | None,
        typer.Option(
            help="Also write a checkpoint: the weight blend that answers best among those that retrieve as well as the "
            "baseline. Use a validation split."
        ),
    ] = None,
    most_loss: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="For --choose: points of R@1 that the 95 % interval of the difference may reach down."
        ),
    ] = 0.5,
) -> None:
    """Options of a sweep that chooses a blend."""


def _add_sweep(tasks: dict[str, type[TaskDefinition[Any]]]) -> None:
    """Adds the command `sweep`, with the options of all tasks; it measures those whose required options are given."""
    blending, choosing = (inspect.signature(of).parameters for of in (_blending, _choosing))
    options = {name: parameters_of(task.options_type) for name, task in tasks.items()}
    required = {name: required_options(task.options_type) for name, task in tasks.items()}
    own: _Parameters = {}
    for name, parameters in options.items():
        first = f"For {name}: "
        for option, parameter in parameters.items():
            own[option] = _optional(parameter, first) if option in required[name] else parameter
    own |= blending | choosing

    def run(given: dict[str, Any]) -> None:
        kind = given["blend"]
        blends = _blending(**{name: given.pop(name) for name in blending})
        chosen_blend, most_loss = (given.pop(name) for name in choosing)
        if chosen_blend is not None and kind == "embedding":
            raise UsageError("--choose chooses among blends of weights: it needs --blend weight or --blend both.")
        if chosen_blend is not None and chosen_blend.exists():
            raise UsageError(f"--choose {chosen_blend} exists already: choose another folder.")
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
        results = _evaluate(chosen, {option: value for option, value in given.items() if option not in unused}, blends)
        if chosen_blend is not None:
            from dialog_eval.api import choose

            beta = choose(results, chosen_blend, most_loss=most_loss / 100)
            _log.info("%s: the weights are %g of the baseline and %g of the checkpoint", chosen_blend, beta, 1 - beta)

    _add_command("sweep", _SWEEP, _SWEEP_EXAMPLE, own, run)


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


@app.command(cls=command_class(example="dialog-eval table sweep.json --out sweep.html --plot sweep.png"))
def table(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json...", help="Files that the other commands wrote.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write: .md or .html.")],
    plot: Annotated[
        Path | None, typer.Option(help="Also plot the sweep, into this PNG; without a sweep, the differences.")
    ] = None,
    forest: Annotated[
        Path | None, typer.Option(help="Also plot the differences to the baseline, into this PNG.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page. Default: what is compared.")] = None,
) -> None:
    """Put results onto one page: a verdict in words, the differences to the baseline, and the tables."""
    from dialog_eval.api import write_table

    write_table(results, out, plot, forest=forest, title=title)
    for path in filter(None, (out, plot, forest)):
        say(path)


@app.command(cls=command_class(example="dialog-eval reproduce table-5-2 --scale shapes --dry-run"))
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="PLAN", help="results, systems, table-5-1, ..., or a .toml file. Default: list them."),
    ] = None,
    scale: Annotated[
        Literal["shapes", "full"],
        typer.Option(help="The embedded world, on this machine, or the published models and data, on GPUs."),
    ] = "shapes",
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything; plans share it. Default: reproduce-out/SCALE.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each main arm. Default: the plan's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of steps that run at a time.")] = 1,
    page: Annotated[Path | None, typer.Option(help="The page to write, .md. Default: PLAN.md in --out.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and what they cost; run nothing.")
    ] = False,
) -> None:
    """Train and measure all that a study or a published table needs, and write the page.

    Steps and costs are printed before anything starts. The same command continues after Ctrl-C, and runs only what is
    missing.
    """
    from dialog_eval.reproduce.command import reproduce as run_plan
    from dialog_eval.reproduce.plan import list_plans

    if name is None:
        say_table(["plan", "scales", ""], list_plans())
        return

    def on_plan(steps: Sequence[Any], costs: Sequence[Any], line: str) -> None:
        if dry_run:
            for step in steps:
                say(step.command)
        figures = ["steps", "done", "minutes on a core", "GPU hours", "images to download", "of unknown cost"]
        rows = [[cost.name, *(f"{number:,.0f}" for number in cost[1:])] for cost in costs]
        say_table(["", *figures], rows)
        say(line)

    written = run_plan(
        name,
        scale=scale,
        out=out,
        seeds=seeds,
        jobs=jobs,
        page=page,
        dry_run=dry_run,
        on_plan=on_plan,
        tell=partial(say, err=True),
    )
    if written is not None:
        say(written)


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
    """Prints one table per task, dataset and protocol: means, of shares in percent, with intervals; and notes.

    Below a model that is no blend is its paired difference to the baseline.
    """
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in results.entries:
        groups.setdefault((entry.task, entry.dataset, entry.protocol), []).append(entry)
    for (task, dataset, protocol), entries in groups.items():
        names = [metric.name for metric in entries[0].metrics]
        shown = presentation_of(task)
        unit = "%, " if shown.percent else ""
        say(visible(f"{task}: {dataset}, {protocol} ({unit}95 % interval)"))
        baseline = next((entry for entry in entries if entry.label == results.baseline), None)
        rows: list[list[str]] = []
        for entry in entries:
            rows.append([entry.label, *(_figure(entry.metric(name), shown) for name in names)])
            compared = entry is not baseline and entry.blend is None and not entry.label.endswith(", blind")
            if baseline is not None and compared:
                changes = (_change(entry.metric(name), baseline.metric(name), shown) for name in names)
                rows.append([f"  minus {baseline.label}", *changes])
        references = [r for r in results.references if (r.task, r.dataset) == (task, dataset)]
        for name in dict.fromkeys(reference.name for reference in references):
            values = {r.metric: f"{r.value:.1%}".rstrip("%") for r in references if r.name == name}
            rows.append([name, *(values.get(metric, "") for metric in names)])
        say_table(["", *names], rows)
        for entry in entries:
            for note in entry.all_notes():
                say(visible(f"{entry.label}: {note}"))


def _figure(metric: Metric | None, shown: Presentation) -> str:
    if metric is None:
        return ""
    return f"{shown.number(metric.mean)} [{shown.number(metric.low)}, {shown.number(metric.high)}]"


def _change(metric: Metric | None, of_baseline: Metric | None, shown: Presentation) -> str:
    if metric is None or of_baseline is None:
        return ""
    change = paired_bootstrap(metric.values, of_baseline.values, groups=metric.groups)
    mean, low, high = (shown.number(value, "+") for value in change)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
