"""Three-stage multi-task alignment of a CLIP's text tower: with texts and with images, short texts first, then long.

accelerate launch train/multitask.py --config train/recipes/multitask-vit-b-32.toml [--set texts.negatives=3 ...]
    [--set stages.3.lr=1e-6 ...] [--resume auto]
"""

import argparse
import sys
from pathlib import Path

from dialog_gen.clip.loader import load_clip
from dialog_train.config import load_recipe
from dialog_train.loop import FitResult, start
from dialog_train.script import run_script, script_parser
from dialog_train.systems.multitask.config import MultitaskRecipe
from dialog_train.systems.multitask.training import prepare_sets, train_stages


def main() -> int:
    """Runs the script and gives its exit code: see `run_script`."""
    options = script_parser(__doc__).parse_args()
    return run_script(lambda: train(options))


def train(options: argparse.Namespace) -> tuple[Path, FitResult]:
    """The recipe's folder, and how the last stage went."""
    recipe = load_recipe(options.config, options.set, MultitaskRecipe)
    with start(recipe) as accelerator:
        clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
        sets = prepare_sets(recipe, clip, accelerator)
        return recipe.out, train_stages(recipe, clip, sets, accelerator, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
