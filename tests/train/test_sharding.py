"""FSDP2: two processes that share the weights against one that has them all."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.loops import make_recipe, train
from helpers.systems import Stopped, check_two_processes
from helpers.trainings import run_training
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.sharding import Shards

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "open_clip_model.safetensors")


def check_same(one: Path, other: Path) -> None:
    for part in ("model", "model-ema"):
        first, second = weights(one / part), weights(other / part)
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=0, atol=2e-5, msg=f"{part}: {name}")


@pytest.mark.slow
def test_two_processes_give_losses_and_gradients_of_one(tmp_path: Path) -> None:
    check_two_processes("helpers.loops:train_sharded", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"train_last_layers": 1}, {"lora": {"rank": 2}}], ids=["whole", "last-layer", "lora"]
)
def test_the_weights_are_those_of_one_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {"max_steps": 3, "ema_decay": 0.5, "grad_clip": 0.5, **changes}
    run_training("helpers.loops:train_sharded", tmp_path / "2", changes, processes=2)
    train(make_recipe(tmp_path / "1", **changes))
    check_same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    changes = {"max_steps": 4, "ema_decay": 0.5, "save_every_steps": 2}

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise Stopped

    train(make_recipe(tmp_path / "whole", **changes))
    # One process, then two that share.
    with pytest.raises(Stopped):
        train(make_recipe(tmp_path / "2", **changes), on_step=stop)
    run_training("helpers.loops:train_sharded", tmp_path / "2", changes, processes=2, resume="auto")
    check_same(tmp_path / "whole", tmp_path / "2")
    # Two that share, then one.
    shutil.rmtree(tmp_path / "2")
    with pytest.raises(AssertionError, match="stopped after 3"):
        run_training("helpers.loops:stop_sharded", tmp_path / "2", changes, processes=2)
    assert (tmp_path / "2" / "checkpoints" / "step-00000002.safetensors").is_file()
    train(make_recipe(tmp_path / "2", **changes), resume="auto")
    check_same(tmp_path / "whole", tmp_path / "2")


def test_one_process_ignores_it(tmp_path: Path) -> None:
    for out, shard in (("a", False), ("b", True)):
        train(make_recipe(tmp_path / out, max_steps=2, ema_decay=0.5, shard=shard))
    check_same(tmp_path / "a", tmp_path / "b")


def test_single_numbers_stay_whole(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        module = torch.nn.Linear(4, 4)
        module.logit_scale = scale = torch.nn.Parameter(torch.ones(1))
        weight, shards = module.weight, Shards(module)
        # The loop limits and logs the scale that it was given.
        assert module.logit_scale is scale is shards.of(scale)
        assert isinstance(shards.of(weight), DTensor)
    finally:
        dist.destroy_process_group()


def test_refuses_half_precision() -> None:
    with pytest.raises(UsageError, match="shard needs precision"):
        load_recipe("draft-shapes", ["optim.shard=true", "optim.precision=fp16"])
