"""Computes the image vectors of a dialogues dataset with a frozen image tower, once.

    python train/embed.py --dialogues DIR --model ViT-B-32-quickgelu --pretrained laion400m_e32 --out DIR

Goes on where an earlier call was stopped. The trainers do the same when the vectors are missing.
"""

import logging
import sys
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dialog_gen.cli.remedies import explained
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.console import run_app
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.data.vectors import DECODERS, embed_dataset


def embed(
    dialogues: Annotated[str, typer.Option(help="Folder or fsspec URL that `dialog-gen run --out` wrote.")],
    model: Annotated[str, typer.Option(help="open_clip's name of a model, or a checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the vectors, new or to go on with.")],
    pretrained: Annotated[str | None, typer.Option(help="Tag of open_clip's, or a safetensors file.")] = None,
    allow_activation_mismatch: Annotated[
        bool, typer.Option("--allow-activation-mismatch", help="Load weights under the wrong activation.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU where there is one.")] = "auto",
    crops: Annotated[int, typer.Option(min=0, help="Random crops of each image, beside the whole one.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = DECODERS,
) -> None:
    """Compute the image vectors of a dialogues dataset, once."""
    logging.getLogger("dialog_train").setLevel(logging.INFO)
    dataset = DatasetFolder.existing(dialogues)
    clip = load_clip(model, pretrained, allow_activation_mismatch=allow_activation_mismatch)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    started = perf_counter()
    columns = ("image vectors", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=sum(manifest.accepted for manifest in dataset.manifests()))
        summary = embed_dataset(
            dataset,
            clip,
            out,
            batch_size=batch_size,
            device=device,
            workers=workers,
            crops=crops,
            on_batch=lambda images: progress.advance(task, images),
        )
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.lost.items())) or "none"
    typer.echo(
        f"{summary.vectors} image vectors in {out} ({perf_counter() - started:.1f} s; "
        f"{summary.skipped_shards} of {summary.shards} shards were there); lost: {lost}"
    )


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)
    app.command()(embed)
    run_app(app, interrupted="finished shards are kept, the same command goes on from there", explain=explained)
