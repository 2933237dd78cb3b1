"""Trainings with a fusion on `TinyPixels`."""

from pathlib import Path
from typing import Any

from dialog_gen.clip.base import Clip
from dialog_train.data.pixel_set import PixelBatches
from dialog_train.loop import FitResult, fit
from dialog_train.systems.mult.config import FusionSettings, MultRecipe
from dialog_train.systems.mult.training import MultTraining
from helpers.loops import make_clip
from helpers.pixels import TinyPixels, make_clip_recipe


def make_mult_recipe(out: Path, **changes: Any) -> MultRecipe:
    """Keys of `fusion`, of `optim` or of the recipe itself."""
    fusion: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "patch_size": 16, "views": ["rows", "columns"]}
    fusion |= {key: changes.pop(key) for key in list(changes) if key in FusionSettings.model_fields}
    own = {"fusion": fusion, "weights": changes.pop("weights", {})}
    return MultRecipe.model_validate({**make_clip_recipe(out, **changes).model_dump(), **own})


def train_mult(out: Path, changes: dict[str, Any], clip: Clip | None = None, **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    recipe = make_mult_recipe(out, **changes)
    system = MultTraining(clip or make_clip(), recipe)
    return fit(recipe, system, PixelBatches(recipe, TinyPixels(), full_length=system.sees_padding), **options)
