"""Mistakes that a training tells before torch is imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import scene_row, write_dialogues, write_recipe

from dialog_gen.clip.base import CLIP_MODELS
from dialog_gen.core.errors import UsageError
from dialog_train.api import load_recipe
from dialog_train.preflight import check_start


def started(recipe: Path, *overrides: str) -> str:
    check_start(load_recipe(recipe, overrides, system="draft"), "never")
    return "nothing is wrong"


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    rows = {name: [scene_row(number) for number in numbers] for name, numbers in (("a", range(6)), ("b", range(6, 10)))}
    return write_dialogues(tmp_path / "dialogues", rows)


def test_what_is_told(tmp_path: Path, dialogues: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, "shapes-clip", dialogues)
    assert started(recipe) == "nothing is wrong"
    # All of the data is one batch.
    assert started(recipe, "optim.batch_size=10") == "nothing is wrong"
    with pytest.raises(UsageError, match=r"optim\.batch_size = 11 needs as many images, .*dialogues has 10: lower it"):
        started(recipe, "optim.batch_size=11")
    with pytest.raises(UsageError, match=r"none does not exist"):
        started(recipe, f"data.dialogues={tmp_path / 'none'}")
    with pytest.raises(UsageError, match=r"run `dialog-gen gate .*dialogues`, or do without data\.kept_only"):
        started(recipe, "data.kept_only=true")
    more = tmp_path / "more"
    shutil.copytree(CLIP_MODELS.get("shapes-clip"), more)
    assert started(recipe, f"model={more}") == "nothing is wrong"
    (more / "third_tower.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"more is a CLIP with a third tower: .* Give the model from which it was tuned"
    ):
        started(recipe, f"model={more}")
    for there in ("out/train.json", "out/checkpoints/step-1.safetensors"):
        (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / there).touch()
        with pytest.raises(UsageError, match=r"out contains a training: continue it with --resume auto"):
            started(recipe)
        check_start(load_recipe(recipe, system="draft"), "auto")
        (tmp_path / there).unlink()


def test_torch_is_not_imported(tmp_path: Path, dialogues: Path) -> None:
    """The command ends with exit code 2 although importing torch would fail."""
    recipe = write_recipe(tmp_path, "shapes-clip", dialogues)
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['accelerate'] = None; from dialog_train.cli import run; "
        f"sys.exit(run(['draft', '--config', {str(recipe)!r}, '--set', 'optim.batch_size=11']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: optim.batch_size = 11 needs as many images")
