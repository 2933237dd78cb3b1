"""DRAFT: tunes a CLIP's text tower on dialogues and captions, against the vectors of its frozen image tower.

accelerate launch train/draft.py --config train/recipes/draft-vit-b-32.toml [--set optim.lr=3e-5 ...] [--resume auto]
"""

import argparse
import sys
from pathlib import Path

from dialog_gen.clip.loader import load_clip
from dialog_train.config import load_recipe
from dialog_train.hf_export import check_export_hf, export_hf
from dialog_train.loop import MODEL_FOLDER, FitResult, fit, start
from dialog_train.script import prepare_training_set, run_script, script_parser
from dialog_train.systems.draft import draft_objective
from dialog_train.systems.text_tuning import PairBatches, TextTuning


def main() -> int:
    """Runs the script and gives its exit code: see `run_script`."""
    parser = script_parser(__doc__)
    parser.add_argument("--export-hf", action="store_true", help="also write OUT/hf for transformers' CLIPModel")
    options = parser.parse_args()
    return run_script(lambda: train(options))


def train(options: argparse.Namespace) -> tuple[Path, FitResult]:
    """The recipe's folder, and how the training went."""
    recipe = load_recipe(options.config, options.set)
    with start(recipe) as accelerator:
        clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
        if options.export_hf:
            check_export_hf(clip)
        training_set = prepare_training_set(recipe, clip, accelerator)
        system = TextTuning(clip, draft_objective(recipe.loss, caption_only=recipe.caption_only), recipe.optim)
        data = PairBatches(recipe, training_set, full_length=system.sees_padding)
        result = fit(recipe, system, data, accelerator=accelerator, resume=options.resume)
        if options.export_hf and accelerator.is_main_process:
            export_hf(load_clip(str(recipe.out / MODEL_FOLDER)), recipe.out / "hf")
    return recipe.out, result


if __name__ == "__main__":
    sys.exit(main())
