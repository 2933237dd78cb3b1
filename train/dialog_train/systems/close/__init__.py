"""CLOSE (arXiv 2211.09778): a text decoder is trained on CLIP's text vectors and used on its image vectors."""

from typing import TYPE_CHECKING

from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem
from dialog_train.systems.close.config import CloseRecipe

if TYPE_CHECKING:
    from dialog_train.loop import FitResult


def train(recipe: CloseRecipe, run: Run) -> "FitResult":
    """Trains the decoder on noisy text vectors of a frozen CLIP."""
    from dialog_gen.clip.loader import load_clip
    from dialog_train.systems.close.training import (
        CloseBatches,
        CloseTraining,
        new_decoder,
        prepare_texts,
        training_texts,
    )

    clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
    texts, adapter = prepare_texts(recipe, clip, run.accelerator, run.on_progress)
    width = int(clip.config["embed_dim"])
    decoder = new_decoder(recipe.decoder, width, training_texts(recipe, iter(texts)), recipe.seed)
    system = CloseTraining(clip, decoder, adapter, recipe)
    return run.fit(recipe, system, CloseBatches(recipe, texts, decoder, adapter))


SYSTEMS.register("close")(
    TrainingSystem(
        description="CLOSE: a text decoder on noisy text vectors of a frozen CLIP.",
        recipe=CloseRecipe,
        train=train,
    )
)
