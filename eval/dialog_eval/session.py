"""One evaluation from its options to results.json and what is printed."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import open_clip
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dialog_eval.data.image_index import ImageSource
from dialog_eval.evaluation import EvaluationTask, evaluate
from dialog_eval.models import Blend, Models
from dialog_eval.options import Common
from dialog_eval.results import Metric, Results
from dialog_gen.clip.loader import Clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.version import __version__
from dialog_train.systems.third_tower.training import ThirdTowerClip, load_model

_log = logging.getLogger(__name__)


def run(
    common: Common,
    options: dict[str, Any],
    load: Callable[[ImageSource], list[EvaluationTask]],
    blends: Sequence[tuple[Blend, float]] | None = None,
    open_model: Callable[[str, str | None], Clip] | None = None,
) -> None:
    """Measures the models on the tasks that `load` gives, writes `common.out` and prints its content without items.

    `options`: those of the command, for the record. `blends`: of a sweep, which measures its two ends beside them: the
    baseline and the checkpoint, or the text tower and the third tower of a checkpoint that has one. `open_model`: what
    makes a model of its name and pretrained tag, where that is not `load_model`.

    Raises UsageError for wrong use, before anything is encoded but for an image that cannot be decoded; DialogGenError
    where the results cannot be written after all.
    """
    device = _device(common.device)
    source = ImageSource(common.images)
    tasks = load(source)
    _check_writable(common.out)
    models = _models(common, blends, device, open_model)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )

    def new_bar(what: str, total: int) -> Callable[[float], None]:
        task = progress.add_task(what, total=total)
        return lambda count: progress.advance(task, count)

    with progress:
        entries, references = evaluate(tasks, models, source, new_bar)
    if models.truncated_texts:
        _log.warning("%d of %d texts were cut to the model's context", models.truncated_texts, models.texts)
    results = Results(
        baseline=models.variants[0].label if len(models.alone) > 1 else None,
        entries=entries,
        references=references,
        settings={
            "versions": {
                "dialog-gen": __version__,
                "torch": torch.__version__,
                "open_clip": open_clip.__version__,
            },
            "device": str(device),
            "options": json.loads(json.dumps({**asdict(common), **options}, default=str)),
            "models": {
                variant.label: {"name": variant.clip.name, "weights_sha256": variant.clip.weights_sha256}
                for variant in models.alone
            },
            "texts": models.texts,
            "truncated_texts": models.truncated_texts,
        },
    )
    # Before the file: figures that took hours are not lost with it.
    if common.json_output:
        typer.echo(json.dumps(_without_items(results), indent=2))
    else:
        _print_tables(results)
    results.save(common.out)


def _models(
    common: Common,
    blends: Sequence[tuple[Blend, float]] | None,
    device: torch.device,
    open_model: Callable[[str, str | None], Clip] | None,
) -> Models:
    def load(name: str, pretrained: str | None) -> Clip:
        if open_model is not None:
            return open_model(name, pretrained)
        return load_model(name, pretrained, allow_activation_mismatch=common.allow_activation_mismatch)

    checkpoint = load(common.checkpoint, common.pretrained)
    baseline = load(common.baseline, common.baseline_pretrained) if common.baseline else None
    if isinstance(checkpoint, ThirdTowerClip):
        if blends is not None:
            baseline = baseline or checkpoint.base
        beta = common.beta if blends is None else 0.0
        checkpoint = checkpoint if beta is None else replace(checkpoint, beta=beta)
    elif common.beta is not None:
        raise UsageError(f"--beta is for checkpoints with a third tower: {common.checkpoint} has none.")
    if blends is not None and baseline is None:
        raise UsageError("blends are of the checkpoint with a baseline: give --baseline.")
    return Models(
        checkpoint,
        common.label or checkpoint.name,
        baseline,
        common.baseline_label or (baseline.name if baseline else ""),
        blends or (),
        device=device,
        batch_size=common.batch_size,
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    # torch has no error of its own for it: a device that it was not built with is an AssertionError, or NotImplemented.
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def _check_writable(out: Path) -> None:
    """Before an hour of work, not after it."""
    part = out.with_name(out.name + ".part")
    try:
        if out.is_dir():
            raise UsageError(f"--out {out} is a folder: give the name of a file, such as {out / 'results.json'}.")
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror or error}.") from None


def _without_items(results: Results) -> dict[str, Any]:
    """As results.json, each metric with its mean and interval only."""
    return results.model_dump(
        mode="json", exclude={"entries": {"__all__": {"metrics": {"__all__": {"values", "groups"}}}}}
    )


def _print_tables(results: Results) -> None:
    """A table a task and protocol: means in percent, with their 95 % intervals."""
    # As wide as it needs to be where nobody watches: a table that is piped should not be cut.
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
