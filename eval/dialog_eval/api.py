"""The Python API of `dialog_eval`. The command line parses, calls these functions and prints."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from dialog_eval.options import Common, make_options, parameters_of
from dialog_eval.results import Blend, Results, check_writable
from dialog_eval.tables.table import write_table
from dialog_eval.tasks.base import get_task
from dialog_gen.core.errors import MissingExtraError, UsageError, did_you_mean
from dialog_gen.core.progress import OnProgress, ignore_progress

__all__ = ["choose", "evaluate", "write_table"]


def evaluate(
    task: str | Sequence[str],
    *,
    checkpoint: str | PathLike[str],
    images: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    pretrained: str | None = None,
    label: str | None = None,
    beta: float | None = None,
    baseline: str | PathLike[str] | None = None,
    baseline_pretrained: str | None = None,
    baseline_label: str | None = None,
    allow_activation_mismatch: bool = False,
    device: str | None = None,
    batch_size: int = 256,
    examples: int = 6,
    blends: Sequence[tuple[Blend, float]] | None = None,
    on_progress: OnProgress = ignore_progress,
    **task_options: Any,
) -> Results:
    """Measures a model and, optionally, a baseline.

    Args:
        task: "retrieval", "vqa", "classify", "generate" or the name of another package's task; or several
            names, which are measured in one pass over the images.
        checkpoint: The model to measure: a checkpoint folder, or a name.
        images: Webdataset tars, image files or Parquet: a folder, glob or fsspec URL.
        out: The results.json to write; None writes nothing.
        pretrained: Tag or safetensors file, if `checkpoint` is open_clip's name of a model.
        label: Row label of the checkpoint. None: its name.
        beta: Share of the text tower, if the checkpoint has a third tower. None: the checkpoint's own value.
        baseline: The model to compare with.
        baseline_pretrained: Like `pretrained`, for the baseline.
        baseline_label: Row label of the baseline. None: its name.
        allow_activation_mismatch: Load weights that were trained with another activation.
        device: Such as "cpu" or "cuda:1". None: cuda if it is available.
        batch_size: Number of images, and of texts, per batch.
        examples: Number of items, each with small images, to keep of those that only the model has right, and of those
            that only the baseline has right; up to 50.
        blends: Also measure these blends of the checkpoint with the baseline: the kind ("embedding" or "weight") and
            the baseline's share, between 0 and 1.
        on_progress: Called while images are encoded and tasks are measured.
        **task_options: The options of the task's command, with _ for -: `captions="captions.json"` for retrieval. With
            several tasks, each takes those that it knows.

    Returns:
        One entry per model and task, with the value of every item.

    Raises:
        UsageError: For an unknown task or option, unsuitable files, and models that cannot be measured or blended.
        MissingExtraError: If open_clip or a package that a task needs is not installed.
        DialogGenError: If the results cannot be written.
    """
    names = [task] if isinstance(task, str) else list(task)
    if not names:
        raise UsageError("nothing to measure: name a task.")
    tasks = {name: get_task(name) for name in names}
    given: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "images": str(images),
        "pretrained": pretrained,
        "label": label,
        "beta": beta,
        "baseline": None if baseline is None else str(baseline),
        "baseline_pretrained": baseline_pretrained,
        "baseline_label": baseline_label,
        "allow_activation_mismatch": allow_activation_mismatch,
        "device": device,
        "batch_size": batch_size,
        "examples": examples,
    }
    common = make_options(Common, given, "an evaluation")
    if blends is not None and beta is not None:
        raise UsageError("a sweep measures all of --betas: leave out --beta.")
    known = {name: parameters_of(definition.options_type) for name, definition in tasks.items()}
    for option in task_options:
        if not any(option in some for some in known.values()):
            every = [name for some in known.values() for name in some]
            raise UsageError(f"{', '.join(names)} has no option {option!r}; {did_you_mean(option, every)}.")
    options = [
        make_options(definition.options_type, {o: v for o, v in task_options.items() if o in known[name]}, name)
        for name, definition in tasks.items()
    ]
    try:
        from dialog_eval.session import measure

        definitions = [definition(some) for definition, some in zip(tasks.values(), options, strict=True)]
        if out is not None:
            check_writable(Path(out))
        results = measure(definitions, common, blends, on_progress)
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise MissingExtraError("open_clip", "train") from None
    if out is not None:
        results.save(Path(out))
    return results


def choose(results: Results, out: str | PathLike[str], *, most_loss: float = 0.005) -> float:
    """Writes the blend of weights that a sweep found best at questions while it retrieves as well as the baseline.

    Args:
        results: What `evaluate` gave for "retrieval" (and "vqa") with `blends` of the kind "weight", on a validation
            split.
        out: The checkpoint folder to write.
        most_loss: The 95 % interval of the difference of image and text R@1 (0 to 1) to the baseline must begin above
            minus this.

    Returns:
        The baseline's share of the weights; 0 is the checkpoint itself.

    Raises:
        UsageError: If no blend retrieves as well, or `out` exists.
        DialogGenError: If the checkpoint cannot be written.
    """
    from dialog_eval.choosing import choose_blend, save_blend
    from dialog_gen.clip.loader import load_clip

    choice = choose_blend(results, most_loss)
    options = results.settings["options"]
    allow = options["allow_activation_mismatch"]
    baseline, checkpoint = (
        load_clip(options[name], options[pretrained], allow_activation_mismatch=allow)
        for name, pretrained in (("baseline", "baseline_pretrained"), ("checkpoint", "pretrained"))
    )
    save_blend(baseline, checkpoint, choice, Path(out))
    return choice.beta
