"""Three-stage multi-task alignment of a text tower with texts and images: first short texts, then long ones."""

from typing import TYPE_CHECKING

from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem
from dialog_train.systems.multitask.config import MultitaskRecipe

if TYPE_CHECKING:
    from dialog_train.loop import FitResult


def train(recipe: MultitaskRecipe, run: Run) -> "FitResult":
    """Trains one stage after the other and returns the result of the last one."""
    from dialog_gen.clip.loader import load_clip
    from dialog_train.systems.multitask.training import prepare_sets, train_stages

    clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
    sets = prepare_sets(recipe, clip, run.accelerator, run.on_progress)
    return train_stages(recipe, clip, sets, run.accelerator, resume=run.resume, on_progress=run.on_progress)


SYSTEMS.register("multitask")(
    TrainingSystem(
        description="Multi-task: a text tower on texts and on images, in stages.",
        recipe=MultitaskRecipe,
        train=train,
    )
)
