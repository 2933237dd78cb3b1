import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.forks import run_file, run_module
from helpers.training import write_recipe
from safetensors.torch import load_file
from transformers import CLIPModel

from dialog_gen.clip.loader import load_clip

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train" / "draft.py"


@pytest.fixture
def recipe(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path) -> Path:
    return write_recipe(tmp_path, tiny_clip, tiny_dialogues, top="save_every_steps = 2", optim="epochs = 1")


@pytest.fixture
def draft(recipe: Path, run_script: Callable[..., int]) -> Callable[..., int]:
    return functools.partial(run_script, "draft", "--config", str(recipe))


def test_is_a_thin_script() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 80


def test_from_dialogues_to_a_model(
    draft: Callable[..., int], tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draft("--set", "optim.max_steps=5", "--export-hf") == 0
    printed = capsys.readouterr()
    assert "5 steps" in printed.out
    base, tuned = load_clip(str(tiny_clip)), load_clip(str(tmp_path / "out" / "model"))
    moved = {
        name
        for name, value in base.model.state_dict().items()
        if not torch.equal(value, tuned.model.state_dict()[name])
    }
    assert {"text_projection", "logit_scale", "transformer.resblocks.0.attn.in_proj_weight"} <= moved
    assert not any(name.startswith("visual.") for name in moved)
    tokens = tuned.tokenizer(["a red circle", "what is left?"])
    with torch.no_grad():
        exported = CLIPModel.from_pretrained(tmp_path / "out" / "hf").get_text_features(tokens).pooler_output
        torch.testing.assert_close(exported, tuned.model.encode_text(tokens), rtol=0, atol=1e-5)

    before = load_file(tmp_path / "out" / "model" / "open_clip_model.safetensors")
    assert draft("--set", "optim.max_steps=5", "--resume", "auto") == 0
    after = load_file(tmp_path / "out" / "model" / "open_clip_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert draft("--set", "optim.max_steps=5") == 2
    assert "--resume auto" in capsys.readouterr().err


def test_uses_vectors_and_rows_that_are_there(draft: Callable[..., int], tmp_path: Path) -> None:
    assert draft("--set", "optim.max_steps=1") == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.[ap]*r*") if path.is_file()}
    assert len(times) == 6
    assert draft("--set", "optim.max_steps=1", "--set", "out=other") == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "loss.a=1.5"], "loss.a"),
        (["--set", "optim.warmup=5"], "did you mean 'warmup_steps'"),
        (["--set", "model=ViT-B-33"], "unknown model 'ViT-B-33'"),
        (["--set", "data.dialogues=nowhere"], "nowhere"),
        (["--set", "optim.batch_size=500"], "48"),
        (["--set", "optim.precision=fp16"], "needs a GPU"),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_wrong_use(
    draft: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert draft(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite(
    draft: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draft("--set", "optim.lr=1e30", "--set", "optim.epochs=3") == 1
    assert "error: step " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "not-finite.json").read_text())["image_ids"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "override", "code"),
    [
        ([], "loss.a=1.5", 2),
        ([], "optim.max_steps=3", 0),
        (["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], "optim.max_steps=3", 0),
        (["accelerate.commands.accelerate_cli", "launch", "--cpu"], "optim.max_steps=3", 0),
    ],
)
def test_as_a_user_starts_it(tmp_path: Path, recipe: Path, launcher: list[str], override: str, code: int) -> None:
    folders = os.pathsep.join(str(ROOT / name) for name in ("pipeline", "train", "eval"))
    env = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = ("--config", str(recipe), "--set", override)
    if launcher:
        done = run_module(*launcher, SCRIPT, *arguments, environment=env, cwd=tmp_path)
    else:
        done = run_file(SCRIPT, *arguments, environment=env, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.splitlines()[-1].startswith("error: ")
    else:
        assert done.stdout.count("3 steps") == 1
        report = json.loads((tmp_path / "out" / "train.json").read_text())
        assert report["processes"] == (2 if "--nproc_per_node" in launcher else 1)
