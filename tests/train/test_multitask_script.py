import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.forks import run_module
from helpers.training import write_recipe

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train" / "multitask.py"
STAGES = """[[stages]]
texts = "pairs"
captions = "short"
[[stages]]
texts = "triplets"
captions = "long"
context_length = 40
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path) -> Path:
    return write_recipe(tmp_path, tiny_clip, tiny_dialogues, optim="max_steps = 2", tables=STAGES)


def test_is_a_thin_script() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 80


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.2.lr=-1", "stages.2.lr"),
        ("texts.temprature=1", "did you mean 'temperature'"),
        ("model=ViT-B-33", "unknown model 'ViT-B-33'"),
        ("data.dialogues=nowhere", "nowhere"),
    ],
)
def test_wrong_use(
    tmp_path: Path,
    recipe: Path,
    run_script: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    override: str,
    said: str,
) -> None:
    assert run_script("multitask", "--config", str(recipe), "--set", override) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_as_a_user_starts_it(tmp_path: Path, recipe: Path) -> None:
    folders = os.pathsep.join(str(ROOT / name) for name in ("pipeline", "train", "eval"))
    env = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run_module(*launcher, SCRIPT, "--config", recipe, environment=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/model: 2 steps, text_loss ")
    for stage in ("stage-1", "stage-2"):
        assert json.loads((tmp_path / "out" / stage / "train.json").read_text())["processes"] == 2
    assert (tmp_path / "out" / "model" / "open_clip_model.safetensors").is_file()
