"""CLIP-3Modal: trains a third tower on dialogues, beside a CLIP's frozen image and text towers.

accelerate launch train/third_tower.py --config train/recipes/third-tower-vit-b-32.toml [--set loss.a=0.8 ...]
"""

import argparse
import sys
from pathlib import Path

from dialog_gen.clip.loader import load_clip
from dialog_train.config import ThirdTowerRecipe, load_recipe
from dialog_train.loop import FitResult, fit, start
from dialog_train.script import prepare_training_set, run_script, script_parser
from dialog_train.systems.text_tuning import PairBatches
from dialog_train.systems.third_tower import ThirdTower


def main() -> int:
    """Runs the script and gives its exit code: see `run_script`."""
    options = script_parser(__doc__).parse_args()
    return run_script(lambda: train(options))


def train(options: argparse.Namespace) -> tuple[Path, FitResult]:
    """The recipe's folder, and how the training went."""
    recipe = load_recipe(options.config, options.set, ThirdTowerRecipe)
    with start(recipe) as accelerator:
        clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
        training_set = prepare_training_set(recipe, clip, accelerator)
        system = ThirdTower(clip, recipe)
        data = PairBatches(recipe, training_set, full_length=system.sees_padding)
        return recipe.out, fit(recipe, system, data, accelerator=accelerator, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
