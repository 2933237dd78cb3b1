"""Training of MaMMUT (arXiv 2303.16839). The model is in `dialog_gen.clip.mammut`."""

from typing import TYPE_CHECKING

from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem
from dialog_train.systems.mammut.config import MammutRecipe

if TYPE_CHECKING:
    from dialog_train.loop import FitResult


def train(recipe: MammutRecipe, run: Run) -> "FitResult":
    """Trains the image tower and the text decoder on captions and, if there are any, dialogues."""
    from dialog_train.data.pixel_set import PixelBatches
    from dialog_train.data.pixel_sources import frequent_questions
    from dialog_train.data.prepare import prepare_pixel_set
    from dialog_train.systems.clip.training import starting_point
    from dialog_train.systems.mammut.training import MammutBatches, MammutTraining

    clip = starting_point(recipe)
    system = MammutTraining(clip, recipe, frequent_questions(recipe.data))
    pixel_set = prepare_pixel_set(recipe, clip, run.accelerator)
    dialogues = recipe.dialogues if pixel_set.has_dialogues else None
    batches = PixelBatches(recipe, pixel_set, dialogues=dialogues, full_length=False)
    return run.fit(recipe, system, MammutBatches(recipe, batches))


SYSTEMS.register("mammut")(
    TrainingSystem(
        description="MaMMUT: an image tower and a decoder that embeds and writes.",
        recipe=MammutRecipe,
        train=train,
    )
)
