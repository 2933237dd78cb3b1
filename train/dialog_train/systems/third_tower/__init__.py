"""CLIP-3Modal: a third tower for dialogues, next to a CLIP's frozen image and text towers (thesis, section 4.3)."""

from typing import TYPE_CHECKING

from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem
from dialog_train.systems.third_tower.config import ThirdTowerRecipe

if TYPE_CHECKING:
    from dialog_train.loop import FitResult


def train(recipe: ThirdTowerRecipe, run: Run) -> "FitResult":
    """Trains the third tower on the vectors of images, captions and dialogues."""
    from dialog_gen.clip.loader import load_clip
    from dialog_train.data.prepare import prepare_training_set
    from dialog_train.long_text import longer, reading
    from dialog_train.systems.third_tower.training import ThirdTower
    from dialog_train.text_tuning import PairBatches

    clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
    stretched = longer(clip, recipe)
    training_set = prepare_training_set(recipe, reading(clip, stretched), run.accelerator, run.on_progress)
    system = ThirdTower(stretched, recipe)
    return run.fit(recipe, system, PairBatches(recipe, training_set, full_length=system.sees_padding))


SYSTEMS.register("third-tower")(
    TrainingSystem(
        description="CLIP-3Modal: a third tower for dialogues, next to frozen towers.",
        recipe=ThirdTowerRecipe,
        train=train,
    )
)
