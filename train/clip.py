"""CLIP: trains an image tower and a text tower on images with captions, by the contrastive loss or SigLIP's.

accelerate launch train/clip.py --config train/recipes/clip-vit-b-32.toml [--set loss=siglip ...] [--resume auto]
"""

import argparse
import sys
from pathlib import Path

from dialog_train.config import ClipRecipe, load_recipe
from dialog_train.data.pixel_set import PixelBatches
from dialog_train.loop import FitResult, fit, start
from dialog_train.script import prepare_pixel_set, run_script, script_parser
from dialog_train.systems.clip import ClipTraining, starting_point


def main() -> int:
    """Runs the script and gives its exit code: see `run_script`."""
    options = script_parser(__doc__).parse_args()
    return run_script(lambda: train(options))


def train(options: argparse.Namespace) -> tuple[Path, FitResult]:
    """The recipe's folder, and how the training went."""
    recipe = load_recipe(options.config, options.set, ClipRecipe)
    with start(recipe) as accelerator:
        clip = starting_point(recipe)
        system = ClipTraining(clip, recipe)
        pixel_set = prepare_pixel_set(recipe, clip, accelerator)
        data = PixelBatches(recipe, pixel_set, full_length=system.sees_padding)
        return recipe.out, fit(recipe, system, data, accelerator=accelerator, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
