"""DRAFT: tunes a CLIP's text tower on dialogues and captions, against the vectors of its frozen image tower.

accelerate launch train/draft.py --config train/recipes/draft-vit-b-32.toml [--set optim.lr=3e-5 ...] [--resume auto]
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from accelerate import Accelerator

from dialog_gen.clip import Clip, load_clip
from dialog_gen.errors import DialogGenError
from dialog_gen.store import DatasetFolder
from dialog_train.config import DraftRecipe, load_recipe
from dialog_train.hf_export import export_hf
from dialog_train.loop import MODEL_FOLDER, fit, start
from dialog_train.objectives import draft_objective
from dialog_train.text_tuning import PairBatches, TextTuning
from dialog_train.training_set import TrainingSet, build_training_set
from dialog_train.vectors import DECODERS, VectorStore, embed_dataset


def main() -> int:
    """Runs the script; the exit code is 0, or 2 for wrong use, 1 for a training that failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="RECIPE.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--resume", choices=["never", "auto"], default="never", help="auto: go on where it stopped")
    parser.add_argument("--export-hf", action="store_true", help="also write OUT/hf for transformers' CLIPModel")
    options = parser.parse_args()
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dialog_train").setLevel(logging.INFO if is_main else logging.WARNING)
    try:
        recipe = load_recipe(options.config, options.set)
        with start(recipe) as accelerator:
            clip = load_clip(
                recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch
            )
            training_set = prepare(recipe, clip, accelerator)
            system = TextTuning(clip, draft_objective(recipe.loss, caption_only=recipe.caption_only), recipe.optim)
            data = PairBatches(recipe, training_set, full_length=system.sees_padding)
            result = fit(recipe, system, data, accelerator=accelerator, resume=options.resume)
            if options.export_hf and accelerator.is_main_process:
                export_hf(load_clip(str(recipe.out / MODEL_FOLDER)), recipe.out / "hf")
    except DialogGenError as error:
        if is_main:
            sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    if is_main:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
        sys.stdout.write(f"{recipe.out / MODEL_FOLDER}: {result.steps} steps, {losses}\n")
    return 0


def prepare(recipe: DraftRecipe, clip: Clip, accelerator: Accelerator) -> TrainingSet:
    """Makes what is missing of image vectors and token ids, in one process; on several machines `work` is shared."""
    vectors, rows = recipe.data.work / "vectors", recipe.data.work / "training_set"
    if accelerator.is_main_process:
        dataset = DatasetFolder.existing(recipe.data.dialogues)
        crops = recipe.data.crops
        embed_dataset(dataset, clip, vectors, device=accelerator.device, workers=DECODERS, crops=crops)
        build_training_set(dataset, VectorStore(vectors), clip, rows, kept_only=recipe.data.kept_only)
    accelerator.wait_for_everyone()
    return TrainingSet(rows)


if __name__ == "__main__":
    sys.exit(main())
