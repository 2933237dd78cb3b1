"""`optim.mini_batch_size`: the losses and gradients of every system that takes it are those of one pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loops import TinyRows, make_clip, make_recipe, make_system
from helpers.multitask import TinyTexts, make_stage
from helpers.pixels import TinyPixels, make_clip_recipe
from torch import Tensor, nn
from torch.nn.functional import dropout

from dialog_gen.clip.base import Clip
from dialog_train.config import OptimSettings
from dialog_train.data.pixel_set import PixelBatches
from dialog_train.system import EVERYTHING, System
from dialog_train.systems.clip.training import ClipTraining
from dialog_train.systems.mult.config import MultRecipe
from dialog_train.systems.multitask.training import MultitaskBatches, multitask_objective
from dialog_train.text_tuning import PairBatches, TextTuning

BATCH = 16


def exact_rows() -> TinyRows:
    rows = TinyRows()
    rows.vectors = rows.vectors.double()
    return rows


def pairs(kind: str) -> Callable[[Path, Clip, dict[str, Any]], tuple[System, Any]]:
    def make(out: Path, clip: Clip, optim: dict[str, Any]) -> tuple[System, Any]:
        recipe = make_recipe(out, kind, **optim)
        return make_system(recipe, clip), PairBatches(recipe, exact_rows(), full_length=False).batch(0, EVERYTHING)

    return make


def multitask(out: Path, clip: Clip, optim: dict[str, Any]) -> tuple[System, Any]:
    recipe = make_stage(out, optim)
    data = MultitaskBatches(recipe, exact_rows(), TinyTexts(), full_length=False)
    return TextTuning(clip, multitask_objective(recipe), recipe.optim), data.batch(0, EVERYTHING)


def towers(out: Path, clip: Clip, optim: dict[str, Any]) -> tuple[System, Any]:
    recipe = make_clip_recipe(out, **optim)
    return ClipTraining(clip, recipe), PixelBatches(recipe, TinyPixels(), full_length=False).batch(0, EVERYTHING)


SYSTEMS: dict[str, Any] = {
    "draft": pairs("draft"),
    "third tower": pairs("third-tower"),
    "multitask": multitask,
    "clip": towers,
}


def clip_with_dropout(share: float) -> Clip:
    clip = make_clip()
    for block in clip.model.transformer.resblocks:
        block.register_forward_hook(lambda module, _, made: dropout(made, share, module.training))
    return clip


def step(system: str, folder: Path, size: int | None, share: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
    """The losses, the gradients, and the sizes of the text tower's passes."""
    made, batch = SYSTEMS[system](folder, clip_with_dropout(share), {"batch_size": BATCH, "mini_batch_size": size})
    module: nn.Module = made.module.double().train()
    sizes: list[int] = []
    texts = [part for name, part in module.named_modules() if name.split(".")[-1] == "ln_final"]
    texts[-1].register_forward_hook(lambda _, states, made: sizes.append(len(states[0])))
    torch.manual_seed(seed)
    losses = module(batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in made.trainable.items() if p.grad is not None}
    assert len(gradients) == len(made.trainable)
    return {**losses, **gradients, "sizes": torch.tensor(sizes)}


@pytest.fixture(autouse=True)
def stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems cast features to float32, which would hide differences below 1e-7 and show others."""
    monkeypatch.setattr(Tensor, "float", lambda self: self if self.is_floating_point() else self.double())


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("size", [1, 5, BATCH - 1])
def test_equals_one_pass(tmp_path: Path, system: str, size: int) -> None:
    whole, parts = step(system, tmp_path, None), step(system, tmp_path, size)
    sizes = parts.pop("sizes")
    assert sizes.max() <= size
    # Each text twice: for the vectors, and for the gradients.
    assert sizes.sum() == 2 * whole.pop("sizes").sum()
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_draws_the_same_dropout_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str) -> None:
    cached = step(system, tmp_path, 5, share=0.3)
    other = step(system, tmp_path, 5, share=0.3, seed=1)
    monkeypatch.setattr("dialog_train.mini_batches.checkpoint", lambda tower, rows, **_: tower(rows))
    kept = step(system, tmp_path, 5, share=0.3)
    assert len(cached.pop("sizes")) == 2 * len(kept.pop("sizes"))
    torch.testing.assert_close(cached, kept, rtol=1e-10, atol=1e-12)
    loss = next(iter(cached))
    assert (cached[loss] - other[loss]).abs() > 1e-6


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_batch_that_fits_is_not_encoded_again(tmp_path: Path, system: str) -> None:
    assert step(system, tmp_path, 200)["sizes"].tolist() == step(system, tmp_path, None)["sizes"].tolist()


def test_a_system_that_cannot(tmp_path: Path) -> None:
    optim = OptimSettings(lr=1e-3, batch_size=8, mini_batch_size=4).model_dump()
    data = {"images": "nowhere", "work": "nowhere"}
    recipe = {"model": "tiny", "out": tmp_path, "data": data, "optim": optim, "fusion": {"patch_size": 8}}
    with pytest.raises(ValueError, match=r"optim\.mini_batch_size = 4 is not for this system"):
        MultRecipe.model_validate(recipe)
