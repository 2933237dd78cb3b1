"""For the tests of training."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from helpers.training import TINY_SHARDS, scene_row, write_dialogues, write_tiny_clip

SCRIPTS = Path(__file__).parents[2] / "train"


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint, for `load_clip(str(tiny_clip))`. Not to be written to."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder: 48 scenes in three shards. Not to be written to."""
    numbers = iter(range(sum(TINY_SHARDS.values())))
    shards = {name: [scene_row(next(numbers)) for _ in range(count)] for name, count in TINY_SHARDS.items()}
    return write_dialogues(tmp_path_factory.mktemp("dialogues") / "set", shards)


@pytest.fixture
def fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the CPU; Accelerate keeps its first settings for the life of a process."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerate: None) -> Callable[..., int]:
    """Runs `train/NAME.py ARGUMENTS...` within this process, in `tmp_path`, and gives its exit code."""
    # Processes that decode cost more than these images.
    for module in ("data.prepare", "soups"):
        monkeypatch.setattr(f"dialog_train.{module}.DECODERS", 0)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> int:
        file = SCRIPTS / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [file.name, *arguments])
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(file), run_name="__main__")
        AcceleratorState._reset_state(reset_partial_state=True)
        assert isinstance(ending.value.code, int)
        return ending.value.code

    return run
