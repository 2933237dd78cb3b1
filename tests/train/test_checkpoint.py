"""Checkpoints: a training resumes to the undisturbed training's weights, or says why it cannot."""

import json
import math
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import loops
from helpers.crashes import CRASHED, crash_at
from helpers.disk import full_at
from helpers.loops import make_clip, make_recipe, train, train_third_tower
from helpers.mammut import train_mammut
from helpers.mult import train_mult
from helpers.multitask import train_stage
from helpers.pixels import train_clip
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_train.checkpoint import DamagedCheckpointError, Trained, read_training, save_training, saved_trainings

WEIGHTS = "model/open_clip_model.safetensors"
Damage = Callable[[Path], None]

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class Stop(BaseException):
    """Like a kill, as far as it goes within a process."""


def stop_at(step: int) -> Any:
    def on_step(number: int, values: dict[str, float]) -> None:
        if number == step:
            raise Stop

    return on_step


def recipe(out: Path, **changes: Any) -> Any:
    plan: dict[str, Any] = {"save_every_steps": 2, "max_steps": 7, "ema_decay": 0.9, **changes}
    return make_recipe(out, **plan)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    out = tmp_path_factory.mktemp("undisturbed")
    train(recipe(out))
    return (out / WEIGHTS).read_bytes()


def half(out: Path) -> list[Path]:
    """Stops a training after step 5; returns its checkpoints, after steps 2 and 4."""
    with pytest.raises(Stop):
        train(recipe(out), on_step=stop_at(5))
    files = sorted((out / "checkpoints").iterdir())
    assert [file.stem for file in files] == ["step-00000002", "step-00000004"]
    return files


def header_and_tensors(file: Path) -> tuple[range, dict[str, range]]:
    """Where the bytes of the header and of each tensor are."""
    content = file.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    places = {
        name: range(*(start + end for end in entry["data_offsets"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }
    return range(start), places


def flip(file: Path, places: list[int], rng: random.Random, count: int = 40) -> None:
    content = bytearray(file.read_bytes())
    for place in rng.sample(places, min(count, len(places))):
        content[place] ^= rng.randrange(1, 256)
    file.write_bytes(content)


def flipped(part: str) -> Damage:
    def damage(file: Path) -> None:
        header, tensors = header_and_tensors(file)
        places = header if part == "header" else [p for name, r in tensors.items() if name.startswith(part) for p in r]
        assert places
        flip(file, list(places), random.Random(part))

    return damage


def one_digit(file: Path) -> None:
    """The header stays valid JSON, and says another number of steps."""
    file.write_bytes(file.read_bytes().replace(rb"\"step\": 4,", rb"\"step\": 5,"))


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Damage] = {
    **{part: flipped(part) for part in ("header", "weights/", "exp_avg/", "exp_avg_sq/", "step/", "ema/")},
    "one digit": one_digit,
    "truncated": truncated,
    "empty": lambda file: os.truncate(file, 0),
    "a directory": a_directory,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_goes_back_to_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, undisturbed: bytes, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, newest = half(tmp_path)
    before = newest.read_bytes()
    DAMAGES[damage](newest)
    assert newest.is_dir() or newest.read_bytes() != before
    steps: list[int] = []
    train(recipe(tmp_path), resume="auto", on_step=lambda step, values: steps.append(step))
    assert steps[0] == 3
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert f"{newest} is damaged" in warning
    assert "goes back to step 2" in warning


def test_goes_back_where_the_newest_is_missing(tmp_path: Path, undisturbed: bytes) -> None:
    half(tmp_path)[1].unlink()
    train(recipe(tmp_path), resume="auto")
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed


def test_does_not_start_anew_where_all_are_damaged(tmp_path: Path) -> None:
    for file in half(tmp_path):
        flipped("weights/")(file)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.safetensors")}
    with pytest.raises(UsageError, match=r"step-00000004.safetensors is damaged .*remove .*checkpoints to start again"):
        train(recipe(tmp_path), resume="auto")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.safetensors")} == before


def test_a_damaged_later_checkpoint_does_not_outlive_a_good_one(tmp_path: Path) -> None:
    flipped("weights/")(half(tmp_path)[1])
    with pytest.raises(Stop):
        train(recipe(tmp_path, save_every_steps=1), resume="auto", on_step=stop_at(4))
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert [read_training(file).step for file in files] == [2, 3]


@pytest.mark.slow
def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    file, rng = half(tmp_path)[1], random.Random(11)
    good, expected = file.read_bytes(), read_training(file)
    found = 0
    for _ in range(400):
        file.write_bytes(good)
        flip(file, list(range(rng.choice([8, 2000, len(good)]))), rng, rng.choice([1, 1, 40]))
        try:
            saved = read_training(file)
        except DamagedCheckpointError:
            found += 1
            continue
        # Spaces pad the header.
        assert (saved.step, saved.fingerprint, saved.scaler) == (expected.step, expected.fingerprint, expected.scaler)
        assert all(torch.equal(value, expected.tensors[name]) for name, value in saved.tensors.items())
    assert found > 350


def tiny(value: float, scaler: Any = None) -> Trained:
    parameter = nn.Parameter(torch.full((50,), float(value)))
    return Trained(parameters={"w": parameter}, optimizer=AdamW([parameter]), ema=None, scaler=scaler)


def test_killed_between_any_two_steps_of_saving(tmp_path: Path) -> None:
    crashed = 0
    for number in range(1, 100):
        out = tmp_path / str(number)
        save_training(out, 2, tiny(2), {})
        save_training(out, 4, tiny(4), {})
        child = os.fork()
        if child == 0:
            sys.addaudithook(crash_at(number, str(out)))
            save_training(out, 6, tiny(6), {})
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        saved = read_training(saved_trainings(out)[0])
        assert saved.step in (4, 6)
        assert saved.tensors["weights/w"].tolist() == [saved.step] * 50
        save_training(out, 6, tiny(6), {})
        assert sorted(path.name for path in out.iterdir()) == ["step-00000004.safetensors", "step-00000006.safetensors"]
        if code == 0:
            break
        assert code == CRASHED
        crashed += 1
    assert 3 < crashed < 99


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save_training(tmp_path, 2, tiny(2), {})
    with full_at(300), pytest.raises(Exception, match="File too large"):
        save_training(tmp_path, 4, tiny(4), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.safetensors"]
    assert read_training(tmp_path / "step-00000002.safetensors").step == 2


def test_the_scaler_of_fp16_resumes(tmp_path: Path) -> None:
    """In float32 on a CPU: factors that are no powers of two round gradients, so weights depend on the scale."""

    def fp16() -> Any:
        accelerator: Any = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=3.7, growth_factor=1.7, growth_interval=2)
        return accelerator

    weights: list[dict[str, torch.Tensor]] = []
    scales: list[dict[str, Any]] = []
    for name, stop in (("whole", None), ("parts", 5)):
        plan = recipe(tmp_path / name, grad_clip=None)
        if stop:
            with pytest.raises(Stop):
                train(plan, accelerator=fp16(), on_step=stop_at(stop))
        accelerator = fp16()
        train(plan, accelerator=accelerator, resume="auto")
        weights.append(load_file(tmp_path / name / WEIGHTS))
        scales.append(accelerator.scaler.state_dict())
    assert scales[0]["scale"] == pytest.approx(3.7 * 1.7**3)
    assert scales[1] == scales[0]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("where", ["checkpoint", "model"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, where: str) -> None:
    """The loss of a step is finite, and its update is not."""
    clip = make_clip()

    def poison(step: int, values: dict[str, float]) -> None:
        if step == (2 if where == "checkpoint" else 3):
            with torch.no_grad():
                clip.model.text_projection[0, 0] = math.inf

    plan = make_recipe(tmp_path, max_steps=3, save_every_steps=1 if where == "checkpoint" else 2)
    with pytest.raises(FailedCheckError, match=r"weights of text_projection are not finite") as raised:
        train(plan, clip, on_step=poison)
    assert raised.value.exit_code == 1
    assert not (tmp_path / "model").exists()
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert all(value.isfinite().all() for value in read_training(kept).tensors.values())


def train_draft(out: Path, changes: dict[str, Any], **options: Any) -> Any:
    return train(make_recipe(out, **changes), **options)


@pytest.mark.parametrize(("setting", "expected"), [("fixed", 117), ("learn", 100)])
@pytest.mark.parametrize("trainer", [train_draft, train_third_tower, train_clip, train_mammut, train_mult, train_stage])
def test_only_a_learned_logit_scale_is_limited(
    tmp_path: Path, trainer: Any, setting: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loops.CONFIG, "init_logit_scale", math.log(117))
    seen: list[float] = []
    changes = {"logit_scale": setting, "max_steps": 3, "lr": 1e-6}
    trainer(tmp_path, changes, on_step=lambda step, values: seen.append(values["logit_scale"]))
    assert seen == pytest.approx([117, expected, expected], rel=1e-4)
