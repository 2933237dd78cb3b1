"""Contrastive training of a CLIP's image and text tower, by the loss of CLIP, SigLIP or another registered loss."""

from typing import TYPE_CHECKING

from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem
from dialog_train.systems.clip.config import ClipRecipe

if TYPE_CHECKING:
    from dialog_train.loop import FitResult


def train(recipe: ClipRecipe, run: Run) -> "FitResult":
    """Trains both towers on pixels and captions, or only the text tower with `lock_image`."""
    from dialog_train.data.pixel_set import PixelBatches
    from dialog_train.data.prepare import prepare_pixel_set
    from dialog_train.systems.clip.training import ClipTraining, starting_point

    clip = starting_point(recipe)
    system = ClipTraining(clip, recipe)
    pixel_set = prepare_pixel_set(recipe, clip, run.accelerator)
    return run.fit(recipe, system, PixelBatches(recipe, pixel_set, full_length=system.sees_padding))


SYSTEMS.register("clip")(
    TrainingSystem(
        description="CLIP, SigLIP, LiT: an image tower and a text tower.",
        recipe=ClipRecipe,
        train=train,
    )
)
