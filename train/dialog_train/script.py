"""What the training scripts share: their command line, the data they prepare, and how they end."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from dialog_gen.cli.remedies import explained
from dialog_gen.clip.loader import Clip
from dialog_gen.core.errors import DialogGenError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.config import PixelRecipe, Recipe
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_set import PixelSet
from dialog_train.data.pixel_sources import open_pixel_source
from dialog_train.data.training_set import TrainingSet, build_training_set
from dialog_train.data.vectors import DECODERS, VectorStore, embed_dataset
from dialog_train.loop import MODEL_FOLDER, FitResult


def script_parser(description: str | None) -> argparse.ArgumentParser:
    """`config`, `set` and `resume`, which every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="RECIPE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--resume", choices=["never", "auto"], default="never", help="auto: go on where it stopped")
    return parser


def run_script(train: Callable[[], tuple[Path, FitResult]]) -> int:
    """As `run_telling`; `train` gives the recipe's folder and how the training went."""

    def told() -> str:
        out, result = train()
        losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
        return f"{out / MODEL_FOLDER}: {result.steps} steps, {losses}"

    return run_telling(told)


def run_telling(work: Callable[[], str]) -> int:
    """Does the work and prints the line that it gives, in the first process only.

    The exit code is 0, or 2 for wrong use, 1 for work that failed, 130 for Ctrl-C.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dialog_train").setLevel(logging.INFO if is_main else logging.WARNING)
    try:
        told = work()
    except DialogGenError as error:
        if is_main:
            sys.stderr.write(f"error: {explained(error)}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    if is_main:
        sys.stdout.write(told + "\n")
    return 0


def prepare_training_set(recipe: Recipe, clip: Clip, accelerator: Accelerator) -> TrainingSet:
    """Makes what is missing of image vectors and token ids, in one process; on several machines `work` is shared."""
    vectors, rows = recipe.data.work / "vectors", recipe.data.work / "training_set"
    if accelerator.is_main_process:
        dataset = DatasetFolder.existing(recipe.data.dialogues)
        crops = recipe.data.crops
        embed_dataset(dataset, clip, vectors, device=accelerator.device, workers=DECODERS, crops=crops)
        build_training_set(dataset, VectorStore(vectors), clip, rows, kept_only=recipe.data.kept_only)
    accelerator.wait_for_everyone()
    return TrainingSet(rows)


def prepare_pixel_set(recipe: PixelRecipe, clip: Clip, accelerator: Accelerator) -> PixelSet:
    """Makes what is missing of pixels and token ids, in one process; on several machines `work` is shared."""
    out = recipe.data.work / "pixel_set"
    if accelerator.is_main_process:
        build_pixel_set(open_pixel_source(recipe.data), clip, out, workers=DECODERS)
    accelerator.wait_for_everyone()
    return PixelSet(out)
