"""`dialog-train dry-run`: a few steps of a recipe with random weights and synthetic data."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.forks import run_module
from helpers.training import TINY_CLIP

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.api import load_recipe
from dialog_train.config import shipped_recipes
from dialog_train.data.synthetic import write_synthetic_dialogues
from dialog_train.dry_run import dry_run

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "no_decoders")

SMALL = sorted(name for name in shipped_recipes() if name.endswith("-shapes"))


@pytest.fixture
def no_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    # Processes that decode cost more than these images.
    monkeypatch.setattr("dialog_train.data.prepare.DECODERS", 0)


@pytest.mark.parametrize("name", SMALL)
def test_every_system_runs_without_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    stages = dry_run(recipe, steps=2, batch_size=16)
    assert [stage.stage for stage in stages] == list(range(1, 1 + len(getattr(recipe, "stages", "x"))))
    for stage in stages:
        assert (stage.batch_size, stage.steps) == (16, 2)
        assert stage.pairs_per_s > 0
        # At least torch itself.
        assert stage.peak_bytes > 1e8
    assert list(tmp_path.iterdir()) == []


def test_the_batch_is_the_recipes_unless_it_is_too_large(tmp_path: Path) -> None:
    (stage,) = dry_run(load_recipe("draft-shapes", ["optim.batch_size=6"]), steps=2, batch_size=16)
    assert stage.batch_size == 6


def test_texts_have_the_usual_lengths_and_images_differ(tmp_path: Path) -> None:
    write_synthetic_dialogues(tmp_path / "set", 1100)
    rows = list(DatasetFolder.existing(str(tmp_path / "set")).rows(["image_sha256", "caption", "texts"]))
    assert len({row["image_sha256"] for row in rows}) == len(rows) == 1100
    tokens = open_clip.get_tokenizer("ViT-B-32")([row["caption"] for row in rows[:50]])
    pairs = open_clip.get_tokenizer("ViT-B-32")(
        [f"{pair['user']} {pair['assistant']}" for row in rows[:50] for pair in row["texts"]]
    )
    assert (tokens != 0).sum(1).float().mean() == pytest.approx(14, abs=0.5)
    assert (pairs != 0).sum(1).float().mean() == pytest.approx(24, abs=2.5)


def test_a_pretrained_model_is_replaced_by_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", no_download)
    monkeypatch.setattr("open_clip.factory.download_pretrained", no_download, raising=False)
    config = tmp_path / "tiny-b32.json"
    config.write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(config)
    recipe = load_recipe("draft-vit-b-32")
    recipe = recipe.model_copy(update={"model": "tiny-b32"})
    (stage,) = dry_run(recipe, steps=2, batch_size=8)
    assert stage.batch_size == 8


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("dialog_train.dry_run.train", full)
    with pytest.raises(FailedCheckError, match=r"a batch of 32 does not fit .* --batch-size"):
        dry_run(load_recipe("draft-shapes"), batch_size=32)


def test_other_errors_are_kept() -> None:
    with pytest.raises(UsageError, match="unknown model"):
        dry_run(load_recipe("draft-shapes", ['model="no such"', 'pretrained="x"']), batch_size=4)
    with pytest.raises(UsageError, match="got 1"):
        dry_run(load_recipe("draft-shapes"), steps=1)


@pytest.mark.slow
def test_one_failed_recipe_does_not_hide_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(shipped_recipes()["draft-shapes"].read_text().replace("shapes-clip", "no-such-model"))
    configs = ["--config", str(broken), "--config", "draft-shapes"]
    ended = run_module("dialog_train", "dry-run", *configs, "--steps", "2", "--batch-size", "8")
    assert ended.returncode == 1
    assert "unknown model 'no-such-model'" in ended.stderr
    assert f"1 of 2 recipes failed: {broken}" in ended.stderr
    assert "draft-shapes: 2 steps of 8 on" in ended.stdout
    assert f"{broken}: failed" in ended.stdout
