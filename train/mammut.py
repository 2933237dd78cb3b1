"""MaMMUT: trains an image tower and one text decoder, which embeds texts in one pass and writes in another.

accelerate launch train/mammut.py --config train/recipes/mammut-vit-b-32.toml [--set gamma=1 ...] [--resume auto]
"""

import argparse
import sys
from pathlib import Path

from dialog_train.config import load_recipe
from dialog_train.data.pixel_set import PixelBatches
from dialog_train.data.pixel_sources import frequent_questions
from dialog_train.loop import FitResult, fit, start
from dialog_train.script import prepare_pixel_set, run_script, script_parser
from dialog_train.systems.clip import starting_point
from dialog_train.systems.mammut.config import MammutRecipe
from dialog_train.systems.mammut.training import MammutBatches, MammutTraining


def main() -> int:
    """Runs the script and gives its exit code: see `run_script`."""
    options = script_parser(__doc__).parse_args()
    return run_script(lambda: train(options))


def train(options: argparse.Namespace) -> tuple[Path, FitResult]:
    """The recipe's folder, and how the training went."""
    recipe = load_recipe(options.config, options.set, MammutRecipe)
    with start(recipe) as accelerator:
        clip = starting_point(recipe)
        system = MammutTraining(clip, recipe, frequent_questions(recipe.data))
        pixel_set = prepare_pixel_set(recipe, clip, accelerator)
        use = recipe.dialogues if pixel_set.has_dialogues else None
        data = MammutBatches(recipe, PixelBatches(recipe, pixel_set, dialogues=use, full_length=False))
        return recipe.out, fit(recipe, system, data, accelerator=accelerator, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
