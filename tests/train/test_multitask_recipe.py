from pathlib import Path
from typing import Any

import pytest

from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.systems.multitask.config import MultitaskRecipe

RECIPES = {file.stem: file for file in (Path(__file__).parents[2] / "train" / "recipes").glob("multitask-*.toml")}
PUBLISHED = [
    # texts, captions, tokens, peak rate, batch, steps (arXiv 2405.20204)
    # Published: 60,000 steps, which are 678 passes over CC3M.
    ("pairs", "short", 77, 1e-4, 32768, 440),
    ("pairs", "long", 512, 5e-6, 8192, 1500),
    ("triplets", "long", 512, 1e-6, 1024, 7000),
]


def load(*overrides: str, name: str = "multitask-vit-b-32") -> MultitaskRecipe:
    return load_recipe(RECIPES[name], overrides, system="multitask")


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_load(name: str) -> None:
    assert len(load(name=name).stages) == 3


def test_published_settings() -> None:
    recipe = load()
    assert (recipe.texts.temperature, recipe.texts.negatives, recipe.texts.leave_out_equal) == (0.05, 7, False)
    for number, row in enumerate(PUBLISHED, 1):
        one = recipe.of_stage(number)
        stage, optim = one.stage, one.optim
        tokens, batch = stage.context_length, optim.batch_size
        assert (stage.texts, stage.captions, tokens, optim.lr, batch, optim.max_steps) == row
        assert one.text_batch_size == batch


def test_a_stage_takes_from_optim_what_it_leaves_out() -> None:
    recipe = load(
        "optim.weight_decay=0.3", "optim.warmup_steps=7", "stages.3.warmup_steps=0", "stages.2.text_batch_size=64"
    )
    stages = [recipe.of_stage(number) for number in (1, 2, 3)]
    assert [stage.optim.weight_decay for stage in stages] == [0.3] * 3
    assert [stage.optim.warmup_steps for stage in stages] == [7, 100, 0]
    assert [stage.text_batch_size for stage in stages] == [32768, 64, 1024]
    assert [str(stage.out) for stage in stages] == [f"runs/multitask-vit-b-32/stage-{n}" for n in (1, 2, 3)]
    assert len({stage.seed for stage in stages}) == 3
    assert [stage.seed for stage in stages] == [load().of_stage(number).seed for number in (1, 2, 3)]
    assert {stage.model for stage in stages} == {recipe.model}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.3.context_length=77", r"context_length may not become less from stage to stage, got \[77, 512, 77\]"),
        ("stages.2.texts=words", "stages.2.texts: .*'words'"),
        ("stages.1.captons=short", "stages.1.captons: unknown key; did you mean 'captions'"),
        ("stages.4.lr=1", "4 is no number from 1 to 3"),
        ("stages.0.lr=1", "0 is no number from 1 to 3"),
        ("stages.first.lr=1", "first is no number"),
        ("stages.2=1", "give the number of a table"),
        ("stages=[]", "at least 1"),
        ("texts.temperature=0", "texts.temperature"),
        ("texts.negatives=0", "texts.negatives"),
    ],
)
def test_refuses(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(override)


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("stages.2.lr=3e-6", lambda r: r.of_stage(2).optim.lr, 3e-6),
        ("stages.3.captions=short", lambda r: r.of_stage(3).stage.captions, "short"),
        ("texts.pairs=my/pairs", lambda r: str(r.texts.pairs), "my/pairs"),
        ("dialogues=rotate", lambda r: r.of_stage(1).dialogues, "rotate"),
    ],
)
def test_overrides(override: str, get: Any, value: object) -> None:
    assert get(load(override)) == value
