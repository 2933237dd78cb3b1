"""Every shipped recipe makes sense for the data that it is for: its schedule fits into its steps, its names exist."""

import shlex
from collections.abc import Iterator
from itertools import pairwise

import pytest

from dialog_gen.clip.loader import check_clip
from dialog_train.api import load_recipe
from dialog_train.config import Recipe, shipped_recipes
from dialog_train.systems.base import SYSTEMS
from dialog_train.systems.multitask.config import MultitaskRecipe

RECIPES = shipped_recipes()
IMAGES = {"shapes": 3_072, "cc3m": 2_905_954}
"""Images of `make demo`, and of the published mirror of CC3M."""
MOST_PASSES = 40


def trainings(recipe: Recipe) -> Iterator[Recipe]:
    if isinstance(recipe, MultitaskRecipe):
        yield from map(recipe.of_stage, range(1, len(recipe.stages) + 1))
    else:
        yield recipe


def complaints(recipe: Recipe, images: int) -> list[str]:
    """The settings that cannot be meant for that many images."""
    optim, found = recipe.optim, list[str]()
    steps = optim.max_steps or optim.epochs * (images // optim.batch_size)
    passes = steps * optim.batch_size / images
    if optim.batch_size > images:
        found.append(f"a batch of {optim.batch_size} of {images} images")
    if optim.warmup_steps > steps / 5:
        found.append(f"warm-up for {optim.warmup_steps} of {steps} steps")
    if passes > MOST_PASSES:
        found.append(f"{passes:.0f} passes over {images} images")
    if recipe.save_every_steps is None or recipe.save_every_steps >= steps:
        found.append(f"a checkpoint every {recipe.save_every_steps} of {steps} steps")
    return found


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_schedule_fits_the_data(name: str) -> None:
    images = IMAGES["shapes" if name.endswith("-shapes") else "cc3m"]
    assert [said for one in trainings(load_recipe(name)) for said in complaints(one, images)] == []


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("clip-vit-b-32", ["optim.warmup_steps=2000"], "warm-up for 2000 of 2816 steps"),
        ("multitask-vit-b-32", ["stages.1.max_steps=60000"], "677 passes over 2905954 images"),
        ("draft-shapes", ["optim.batch_size=4096", "optim.max_steps=1"], "a batch of 4096 of 3072 images"),
    ],
)
def test_the_complaints_find_nonsense(name: str, overrides: list[str], said: str) -> None:
    images = IMAGES["shapes" if name.endswith("-shapes") else "cc3m"]
    assert said in [each for one in trainings(load_recipe(name, overrides)) for each in complaints(one, images)]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_model_exists(name: str) -> None:
    recipe = load_recipe(name)
    if recipe.pretrained is not None:
        check_clip(recipe.model, recipe.pretrained)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_changes_that_the_comments_name_load(name: str) -> None:
    for line in RECIPES[name].read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "--set" in line:
            words = shlex.split(line[line.index("--set") :])
            changes = [value.rstrip(".") for word, value in pairwise(words) if word == "--set"]
            assert changes
            assert load_recipe(name, changes)


def test_every_system_has_a_recipe_of_each_size() -> None:
    sizes = [[name for name in RECIPES if kind in name] for kind in ("-vit-", "-shapes")]
    assert [sorted(type(load_recipe(name)).__name__ for name in names) for names in sizes] == [
        sorted(SYSTEMS.get(name).recipe.__name__ for name in SYSTEMS.names())
    ] * 2
