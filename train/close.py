"""CLOSE: trains a text decoder on noisy text vectors of a frozen CLIP, to be used on its image vectors.

accelerate launch train/close.py --config train/recipes/close-vit-l-14.toml [--set noise=0.08 ...] [--resume auto]
"""

import argparse
import sys
from pathlib import Path

from accelerate import Accelerator

from dialog_gen.clip.base import Clip
from dialog_gen.clip.close.adapters import Adapter
from dialog_gen.clip.loader import load_clip
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.config import load_recipe
from dialog_train.data.vectors import DECODERS, VectorStore, embed_dataset
from dialog_train.loop import FitResult, fit, start
from dialog_train.script import run_script, script_parser
from dialog_train.systems.close.config import CloseRecipe
from dialog_train.systems.close.texts import Texts, build_texts
from dialog_train.systems.close.training import CloseBatches, CloseTraining, fitted_adapter, new_decoder, training_texts


def main() -> int:
    """Runs the script and gives its exit code: see `run_script`."""
    options = script_parser(__doc__).parse_args()
    return run_script(lambda: train(options))


def train(options: argparse.Namespace) -> tuple[Path, FitResult]:
    """The recipe's folder, and how the training went."""
    recipe = load_recipe(options.config, options.set, CloseRecipe)
    with start(recipe) as accelerator:
        clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
        texts, adapter = prepare(recipe, clip, accelerator)
        width = int(clip.config["embed_dim"])
        decoder = new_decoder(recipe.decoder, width, training_texts(recipe, iter(texts)), recipe.seed)
        system = CloseTraining(clip, decoder, adapter, recipe)
        data = CloseBatches(recipe, texts, decoder, adapter)
        return recipe.out, fit(recipe, system, data, accelerator=accelerator, resume=options.resume)


def prepare(recipe: CloseRecipe, clip: Clip, accelerator: Accelerator) -> tuple[Texts, Adapter]:
    """Makes what is missing of text vectors and, for an adapter, of image vectors, in one process."""
    images, texts = recipe.data.work / "vectors", recipe.data.work / "texts"
    if accelerator.is_main_process:
        dataset = DatasetFolder.existing(recipe.data.dialogues)
        if recipe.adapter != "none":
            embed_dataset(dataset, clip, images, device=accelerator.device, workers=DECODERS)
        build_texts(dataset, clip, texts, kept_only=recipe.data.kept_only, device=accelerator.device)
    accelerator.wait_for_everyone()
    found = Texts(texts)
    return found, fitted_adapter(recipe, found, None if recipe.adapter == "none" else VectorStore(images))


if __name__ == "__main__":
    sys.exit(main())
