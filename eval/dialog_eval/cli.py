"""The command line: `dialog-eval COMMAND`. Results go to stdout, everything else to stderr.

Exit codes: 0 all done; 2 wrong use; 130 Ctrl-C.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dialog_eval.options import (
    CAPTIONS_HELP,
    BlendOption,
    CalibrateOption,
    CandidatesOption,
    Common,
    FormatOption,
    ImageList,
    MetricOption,
    ModeOption,
    PerImage,
    SplitOption,
    TrainAnnotations,
)
from dialog_gen.core.console import Version, begin, run_app
from dialog_gen.core.errors import MissingExtraError, UsageError

# What a command needs beyond this is imported inside it: `dialog-eval --help` should not wait for torch.
if TYPE_CHECKING:
    from dialog_eval.data.image_index import ImageSource
    from dialog_eval.evaluation import EvaluationTask
    from dialog_eval.models import Blend
    from dialog_gen.clip.base import Clip

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a command asks for."""

    load: "Callable[[ImageSource], list[EvaluationTask]]"
    blends: "tuple[tuple[Blend, float], ...] | None" = None
    """Of a sweep."""
    open_model: "Callable[[str, str | None], Clip] | None" = None
    """Where models are no CLIPs."""


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


def _evaluation(plan: Callable[..., _Plan]) -> Callable[..., _Plan]:
    """Makes a command of a function that plans: it has the function's options and the common ones."""
    own, shared = (dict(inspect.signature(of).parameters) for of in (plan, Common))

    def command(**given: Any) -> None:
        common = Common(**{name: given.pop(name) for name in shared})
        try:
            from dialog_eval.session import run

            planned = plan(**given)
        except ModuleNotFoundError as error:
            if error.name != "open_clip":
                raise
            raise MissingExtraError("open_clip", "train") from None
        if planned.blends is not None and common.beta is not None:
            raise UsageError("a sweep measures all of --betas: leave out --beta.")
        run(common, given, planned.load, planned.blends, planned.open_model)

    parameters = {**shared, **own}
    # What typer reads.
    command.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters.values()])
    vars(command)["__signature__"] = signature
    app.command(plan.__name__, help=plan.__doc__)(command)
    return plan


@_evaluation
def retrieval(
    captions: Annotated[Path, typer.Option(help=CAPTIONS_HELP)],
    split: SplitOption = None,
    captions_per_image: PerImage = "5",
) -> _Plan:
    """Recall at 1, 5 and 10: of images by their captions, of captions by their image."""
    per_image = _per_image(captions_per_image)

    def load(source: "ImageSource") -> "list[EvaluationTask]":
        from dialog_eval.tasks.retrieval import load_retrieval

        return [load_retrieval(captions, source, captions_per_image=per_image, split=split)]

    return _Plan(load)


@_evaluation
def vqa(
    questions: Annotated[Path, typer.Option(help="VQAv1 questions JSON.")],
    annotations: Annotated[Path, typer.Option(help="VQAv1 annotations JSON of the same split.")],
    candidates: CandidatesOption = "mc18",
    metric: MetricOption = "official",
    mode: ModeOption = "official",
    dialogue_format: FormatOption = "question_answer",
    calibrate: CalibrateOption = "none",
    train_annotations: TrainAnnotations = None,
    image_list: ImageList = None,
) -> _Plan:
    """Accuracy on VQAv1, over all questions and for each type of answer, beside what needs no image."""

    def load(source: "ImageSource") -> "list[EvaluationTask]":
        from dialog_eval.tasks.vqa import VqaOptions, load_vqa_task

        options = VqaOptions(candidates, metric, mode, dialogue_format, calibrate)
        files = {"train_annotations": train_annotations, "image_list": image_list}
        return [load_vqa_task(questions, annotations, source, options, **files)]

    return _Plan(load)


@_evaluation
def classify(
    labels: Annotated[
        Path | None, typer.Option(help="JSON of image id -> class. Default: the first folder of each image's id.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="A class a line: its name, and behind a tab its text, where that is another.")
    ] = None,
    templates: Annotated[
        str, typer.Option(help="openai, simple, or a file with a line each, such as: a {}.")
    ] = "openai",
) -> _Plan:
    """Zero-shot classification: top-1, top-5, and top-1 as the mean over classes."""

    def load(source: "ImageSource") -> "list[EvaluationTask]":
        from dialog_eval.tasks.classification import load_classification

        return [load_classification(source, labels=labels, classes=classes, templates=templates)]

    return _Plan(load)


@_evaluation
def sweep(
    captions: Annotated[Path | None, typer.Option(help=f"For retrieval: {CAPTIONS_HELP}")] = None,
    split: SplitOption = None,
    questions: Annotated[Path | None, typer.Option(help="VQAv1 questions JSON, for VQA.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="VQAv1 annotations JSON of the same split.")] = None,
    betas: Annotated[
        str, typer.Option(help="Shares of the baseline. Baseline (1) and checkpoint (0) are always measured.")
    ] = "1,0.95,0.9,0.8,0.6,0",
    blend: BlendOption = "both",
    captions_per_image: PerImage = "5",
    candidates: CandidatesOption = "mc18",
    metric: MetricOption = "official",
    mode: ModeOption = "official",
    dialogue_format: FormatOption = "question_answer",
    calibrate: CalibrateOption = "none",
    train_annotations: TrainAnnotations = None,
    image_list: ImageList = None,
) -> _Plan:
    """Retrieval, VQA or both for blends of the checkpoint with the baseline, in one pass.

    A checkpoint with a third tower is blended as that alone; its own text tower is the baseline where none is given.
    """
    per_image, shares = _per_image(captions_per_image), _betas(betas)
    kinds = ("embedding", "weight") if blend == "both" else (blend,)
    if (questions is None) != (annotations is None):
        raise UsageError("VQA needs both --questions and --annotations.")
    if captions is None and questions is None:
        raise UsageError("nothing to measure: give --captions, or --questions and --annotations.")

    def load(source: "ImageSource") -> "list[EvaluationTask]":
        from dialog_eval.tasks.retrieval import load_retrieval
        from dialog_eval.tasks.vqa import VqaOptions, load_vqa_task

        tasks: list[EvaluationTask] = []
        if captions:
            tasks.append(load_retrieval(captions, source, captions_per_image=per_image, split=split))
        if questions and annotations:
            options = VqaOptions(candidates, metric, mode, dialogue_format, calibrate)
            files = {"train_annotations": train_annotations, "image_list": image_list}
            tasks.append(load_vqa_task(questions, annotations, source, options, **files))
        return tasks

    return _Plan(load, tuple((kind, beta) for kind in kinds for beta in shares))


@_evaluation
def generate(
    tasks: Annotated[str, typer.Option(help="Of vqa, captioning and entailment, with commas between them.")] = "vqa",
    questions: Annotated[Path | None, typer.Option(help="VQAv1 questions JSON, for vqa and entailment.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="VQAv1 annotations JSON of the same split.")] = None,
    captions: Annotated[
        Path | None,
        typer.Option(help=f"For captioning; given it, texts are also generated from captions. {CAPTIONS_HELP}"),
    ] = None,
    split: SplitOption = None,
    captions_per_image: PerImage = "5",
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest text.")] = 32,
    metric: MetricOption = "official",
    mode: ModeOption = "official",
    train_annotations: TrainAnnotations = None,
    image_list: ImageList = None,
) -> _Plan:
    """What models of train/close.py and train/mammut.py write: answers, captions, whether statements follow."""
    from dialog_eval.tasks.generation import GenerationOptions, load_generation
    from dialog_eval.writers import open_writer

    options = GenerationOptions.of(tasks, beams=beams, max_tokens=max_tokens, measure=metric, mode=mode)
    per_image = _per_image(captions_per_image)

    def load(source: "ImageSource") -> "list[EvaluationTask]":
        files = {"questions": questions, "annotations": annotations, "captions": captions, "image_list": image_list}
        files["train_annotations"] = train_annotations
        return load_generation(source, options, **files, split=split, captions_per_image=per_image)

    return _Plan(load, open_model=open_writer)


@app.command()
def table(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS.json...", help="What the other commands wrote.")],
    out: Annotated[Path, typer.Option(help="The table to write: .md or .html.")],
    plot: Annotated[Path | None, typer.Option(help="Also plot the sweep, into this PNG.")] = None,
) -> None:
    """Put results into one table, with the differences to the baseline."""
    from dialog_eval.report.table import write_table

    write_table(results, out, plot)


def _per_image(text: str) -> int | None:
    """A number of captions; None for all."""
    if text == "all":
        return None
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--captions-per-image {text}: give a number from 1 on, or all.")
    return int(text)


def _betas(text: str) -> list[float]:
    """The shares between 0 and 1, each once; the ends are no blends."""
    try:
        betas = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--betas {text}: give numbers from 0 to 1, with commas between them.") from None
    if wrong := [beta for beta in betas if not 0 <= beta <= 1]:
        raise UsageError(f"--betas {text}: {wrong[0]:g} is no share of the baseline; give numbers from 0 to 1.")
    return [beta for beta in dict.fromkeys(betas) if 0 < beta < 1]


if __name__ == "__main__":
    main()
