"""MulT augmentation: trains a CLIP's towers with a third vector, fused of image and text by a crossmodal transformer.

accelerate launch train/mult.py --config train/recipes/mult-vit-b-32.toml [--set weights.a=0.5 ...] [--resume auto]
"""

import argparse
import sys
from pathlib import Path

from dialog_train.config import load_recipe
from dialog_train.data.pixel_set import PixelBatches
from dialog_train.loop import FitResult, fit, start
from dialog_train.script import prepare_pixel_set, run_script, script_parser
from dialog_train.systems.clip import starting_point
from dialog_train.systems.mult.config import MultRecipe
from dialog_train.systems.mult.training import MultTraining


def main() -> int:
    """Runs the script and gives its exit code: see `run_script`."""
    options = script_parser(__doc__).parse_args()
    return run_script(lambda: train(options))


def train(options: argparse.Namespace) -> tuple[Path, FitResult]:
    """The recipe's folder, and how the training went."""
    recipe = load_recipe(options.config, options.set, MultRecipe)
    with start(recipe) as accelerator:
        clip = starting_point(recipe)
        system = MultTraining(clip, recipe)
        pixel_set = prepare_pixel_set(recipe, clip, accelerator)
        data = PixelBatches(recipe, pixel_set, full_length=system.sees_padding)
        return recipe.out, fit(recipe, system, data, accelerator=accelerator, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
