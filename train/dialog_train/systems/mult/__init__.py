"""MulT augmentation: the towers of a CLIP are trained together with a crossmodal transformer (thesis, section 4.2)."""

from typing import TYPE_CHECKING

from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem
from dialog_train.systems.mult.config import MultRecipe

if TYPE_CHECKING:
    from dialog_train.loop import FitResult


def train(recipe: MultRecipe, run: Run) -> "FitResult":
    """Trains both towers and the fusion of image and text."""
    from dialog_train.data.pixel_set import PixelBatches
    from dialog_train.data.prepare import prepare_pixel_set
    from dialog_train.systems.clip.training import starting_point
    from dialog_train.systems.mult.training import MultTraining

    clip = starting_point(recipe)
    system = MultTraining(clip, recipe)
    pixel_set = prepare_pixel_set(recipe, clip, run.accelerator)
    return run.fit(recipe, system, PixelBatches(recipe, pixel_set, full_length=system.sees_padding))


SYSTEMS.register("mult")(
    TrainingSystem(
        description="MulT: both towers, with a transformer that fuses image and text.",
        recipe=MultRecipe,
        train=train,
    )
)
