"""Trainings of a model so small that a step takes milliseconds, on rows that hold something to learn."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.texts import Texts
from dialog_gen.core.tensors import sha256_of_weights
from dialog_train.config import DialogueRecipe, OptimSettings
from dialog_train.data.training_set import Batch
from dialog_train.loop import FitResult, fit
from dialog_train.systems.draft import DraftRecipe, draft_objective
from dialog_train.systems.third_tower.config import ThirdTowerRecipe
from dialog_train.systems.third_tower.training import ThirdTower
from dialog_train.text_tuning import PairBatches, TextTuning

RECIPES: dict[str, type[DialogueRecipe]] = {"draft": DraftRecipe, "third-tower": ThirdTowerRecipe}
"""What `train` trains, for tests that hold for every system of text towers."""
WIDTH, CONTEXT, VOCABULARY = 16, 12, 64
CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 3},
}
PREPROCESS = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def make_clip(*, custom: bool = False, **text: Any) -> Clip:
    torch.manual_seed(0)
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], **text}}
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return Clip(
        model=model.eval(),
        preprocess=None,
        tokenizer=None,
        name="tiny",
        config={**config, "custom_text": True} if custom else config,
        preprocess_config=PREPROCESS,
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


class TinyRows:
    """A training set in memory: the vector and the texts of a row tell of one of eight things."""

    def __init__(self, rows: int = 50, broken: int | None = None) -> None:
        self.config: dict[str, Any] = {"kind": "tiny"}
        generator = torch.Generator().manual_seed(1)
        directions = torch.randn(8, WIDTH, generator=generator)
        noise = torch.randn(rows, WIDTH, generator=generator)
        self.vectors = normalize(directions[torch.arange(rows) % 8] + 0.3 * noise, dim=-1)
        if broken is not None:
            self.vectors[broken, 3] = torch.nan
        self.served: list[tuple[list[int], int, bool, bool]] = []

    def __len__(self) -> int:
        return len(self.vectors)

    def batch(self, rows: Any, epoch: int, *, concatenate: bool, full_length: bool = False) -> Batch:
        order = [int(row) for row in rows]
        self.served.append((order, epoch, concatenate, full_length))
        texts = [[1, 2 + row % 8, 10 + row % 5, VOCABULARY - 1] for row in order]
        # Of another length than the captions, and not the same in all epochs.
        pairs = [[1, 20 + epoch % 3, 30 + row % 8, *[40 + row % 7] * (row % 3), VOCABULARY - 1] for row in order]
        return Batch(
            image_ids=[f"image-{row}" for row in order],
            image_vectors=self.vectors[order],
            captions=texts_of(texts, CONTEXT if full_length else 0),
            dialogues=texts_of(pairs, CONTEXT if full_length else 0),
        )


def texts_of(texts: list[list[int]], least: int) -> Texts:
    return Texts.of([np.array(text, np.int32) for text in texts], 0, least)


def make_recipe(out: Path, kind: str = "draft", **changes: Any) -> Any:
    """The recipe of a short training; keys of `optim` or of the recipe itself."""
    optim = {"lr": 3e-3, "batch_size": 8, "epochs": 2, "warmup_steps": 3, "grad_clip": 1.0}
    optim |= {key: changes.pop(key) for key in list(changes) if key in OptimSettings.model_fields}
    content = {"model": "tiny", "out": out, "data": {"dialogues": "nowhere", "work": "nowhere"}, "optim": optim}
    return RECIPES[kind].model_validate({**content, "log": {"tensorboard": False}, **changes})


def make_system(recipe: DialogueRecipe, clip: Clip) -> TextTuning | ThirdTower:
    if isinstance(recipe, ThirdTowerRecipe):
        return ThirdTower(clip, recipe)
    assert isinstance(recipe, DraftRecipe)
    return TextTuning(clip, draft_objective(recipe.loss, caption_only=recipe.caption_only), recipe.optim)


def train(recipe: DialogueRecipe, clip: Clip | None = None, rows: TinyRows | None = None, **options: Any) -> FitResult:
    """`fit` with the recipe's system."""
    system = make_system(recipe, clip or make_clip())
    return fit(recipe, system, PairBatches(recipe, rows or TinyRows(), full_length=system.sees_padding), **options)


def train_third_tower(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    return train(make_recipe(out, "third-tower", **changes), **options)


def train_lora(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    return train(make_recipe(out, "draft", lora={"rank": 2}, **changes), **options)


def train_sharded(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    return train(make_recipe(out, "draft", shard=True, **changes), **options)


def stop_sharded(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """`train_sharded`, which fails after three steps."""

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise RuntimeError("stopped after 3")

    return train_sharded(out, changes, **{**options, "on_step": stop})


def train_draft(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    return train(make_recipe(out, "draft", **changes), **options)
