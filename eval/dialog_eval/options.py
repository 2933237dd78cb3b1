"""Options of `dialog-eval`; typer reads the annotations. Imports nothing slow, so that --help is there at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

Calibration = Literal["none", "mean-image", "text"]
Candidates = Literal["mc18", "top1000", "top3129"]
DialogueFormat = Literal["question_answer", "labelled", "answer"]
Judgement = Literal["official", "exact"]
Normalisation = Literal["official", "clean"]
BlendKind = Literal["embedding", "weight", "both"]

CAPTIONS_HELP = "COCO captions JSON, or Karpathy's dataset_coco.json."

PerImage = Annotated[str, typer.Option(metavar="N|all", help="The first N captions of each image count, or all.")]
SplitOption = Annotated[
    str | None, typer.Option(help="Of dataset_coco.json: test (default), val, train (with restval).")
]
CandidatesOption = Annotated[
    Candidates, typer.Option(help="Each question's 18 choices, or training's most frequent answers.")
]
MetricOption = Annotated[
    Judgement, typer.Option("--metric", help="Agreement with ten people, or equality with their most frequent answer.")
]
ModeOption = Annotated[
    Normalisation, typer.Option(help="Answers normalised as the published code does, or as it is documented.")
]
FormatOption = Annotated[
    DialogueFormat, typer.Option("--format", help="How question and answer become a text: that of the training.")
]
CalibrateOption = Annotated[
    Calibration, typer.Option(help="Subtract what a candidate scores with the mean image, or with the question alone.")
]
TrainAnnotations = Annotated[
    Path | None, typer.Option(help="VQAv1 annotations of a training split, for top answers and question-type prior.")
]
ImageList = Annotated[
    Path | None, typer.Option(help="COCO file whose `images` name the files. Default: the digits that ids end with.")
]
BlendOption = Annotated[BlendKind, typer.Option(help="Blend text vectors, weights of the text tower, or both.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options of all evaluations."""

    checkpoint: Annotated[str, typer.Option(help="Model to measure: a checkpoint folder, or a name.")]
    images: Annotated[str, typer.Option(help="Webdataset tars, image files or Parquet: a folder, glob or fsspec URL.")]
    out: Annotated[Path, typer.Option(help="The results.json to write.")]
    pretrained: Annotated[
        str | None, typer.Option(help="Tag or safetensors file, where --checkpoint is open_clip's name of a model.")
    ] = None
    label: Annotated[str | None, typer.Option(help="Row label of the checkpoint. Default: its name.")] = None
    beta: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Where --checkpoint has a third tower: the text tower's share beside it; 0 is the third tower alone. "
            "Default: the checkpoint's own.",
        ),
    ] = None
    baseline: Annotated[str | None, typer.Option(help="Model to compare with: a checkpoint folder, or a name.")] = None
    baseline_pretrained: Annotated[str | None, typer.Option(help="As --pretrained, of the baseline.")] = None
    baseline_label: Annotated[str | None, typer.Option(help="Row label of the baseline. Default: its name.")] = None
    allow_activation_mismatch: Annotated[
        bool,
        typer.Option("--allow-activation-mismatch", help="Load weights that were trained with another activation."),
    ] = False
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1. Default: cuda where there is one.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images, and texts, encoded at once.")] = 256
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
