"""What every system must hold in the one loop: resume and any number of processes, whatever the objective.

A trainer is named "module:function"; the function trains something tiny: (out, changes of the recipe, **options of
`fit`) -> FitResult. It saves to OUT/model, and to OUT/model-ema under `ema_decay`.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.trainings import run_training, trainer


class Stopped(BaseException):
    """Like a kill, as far as it goes within a process."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_resume(name: str, folder: Path, *, stop: int, every: int = 3) -> None:
    """Stopped after `stop` steps and resumed, it writes the bytes that an undisturbed training writes."""
    train = trainer(name)
    changes = {"ema_decay": 0.9, "save_every_steps": every}
    train(folder / "whole", changes)

    def stop_there(step: int, values: dict[str, float]) -> None:
        if step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        train(folder / "parts", changes, on_step=stop_there)
    assert not (folder / "parts" / "model").exists()
    steps: list[int] = []
    train(folder / "parts", changes, resume="auto", on_step=lambda step, values: steps.append(step))
    # What is done in a step is written after `on_step` heard of it.
    assert steps[0] == (stop - 1) // every * every + 1
    for part in ("model", "model-ema"):
        whole = files_of(folder / "whole" / part)
        assert whole
        assert files_of(folder / "parts" / part) == whole
    assert files_of(folder / "whole" / "model") != files_of(folder / "whole" / "model-ema")


def check_two_processes(name: str, folder: Path, *, rounding: float = 1e-7) -> None:
    """Two processes give the losses and gradients of one. `rounding`: what small losses may differ by."""
    changes = {"max_steps": 4, "save_every_steps": 1, "grad_clip": 1e6}
    one, two = (run_training(name, folder / str(count), changes, processes=count) for count in (1, 2))
    assert json.loads((folder / "2" / "train.json").read_text())["processes"] == 2
    # Both processes tell of each step, and tell the same.
    assert sorted(step for step, _ in two) == sorted(2 * [step for step, _ in one])
    for step, values in two:
        assert values == pytest.approx(one[step - 1][1], rel=2e-5, abs=rounding)
    first, second = (load_file(folder / str(count) / "first.safetensors") for count in (1, 2))
    gradients = [name for name in first if name.startswith("exp_avg/")]
    assert len(gradients) > 10
    for name in gradients:
        scale = first[name].norm().item()
        assert (first[name] - second[name]).norm().item() <= 2e-5 * scale + 1e-8, name
