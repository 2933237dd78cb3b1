"""`dialog-train`, its recipes, `dialog_train.train`, and how errors end under launchers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.forks import run_module
from helpers.training import write_recipe

import dialog_train
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_train.cli import run
from dialog_train.config import shipped_recipes
from dialog_train.systems.base import SYSTEMS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def recipe(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dialog_train.data.prepare.DECODERS", 0)
    return write_recipe(tmp_path, tiny_clip, tiny_dialogues)


def test_shipped_recipes_are_known_by_name_and_by_path() -> None:
    files = {path.stem: path for path in (ROOT / "train" / "recipes").glob("*.toml")}
    assert shipped_recipes() == files
    for name, file in files.items():
        recipe = dialog_train.load_recipe(name)
        assert recipe == dialog_train.load_recipe(file)
        assert any(
            name.startswith(f"{system}-") and type(recipe) is SYSTEMS.get(system).recipe for system in SYSTEMS.names()
        )


def test_a_recipe_of_another_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["clip", "--config", "draft-shapes"]) == 2
    assert "is for the system 'draft', not for 'clip': try dialog-train draft." in capsys.readouterr().err


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["draft", "--config", "draft-shape"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown recipe 'draft-shape': did you mean 'draft-shapes'? Known: clip-shapes, ")
    assert error.count("\n") == 1


def test_lists_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    assert "draft-shapes          DRAFT in the embedded world" in capsys.readouterr().out
    assert run(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: str(file) for name, file in shipped_recipes().items()}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Usage: dialog-train"),
        (["--help"], 0, "Usage: dialog-train"),
        (["draft"], 2, "error: Missing option '--config'; `dialog-train draft -h`"),
        (["draft", "--config", "x", "--resume", "no"], 2, "error: --resume no: 'no' is not one of 'never', 'auto'; "),
    ],
)
def test_help_and_wrong_flags(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


@pytest.mark.usefixtures("fresh_accelerate")
def test_train_from_python(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[Any, ...]] = []
    result = dialog_train.train(
        recipe,
        system="draft",
        overrides=["seed=3"],
        on_progress=lambda stage, done, total, unit="", note="": heard.append((stage, done, total)),
    )
    assert (result.model, result.steps) == (Path("out/model"), 3)
    assert set(result.losses) == {"image_dialogue_loss", "image_caption_loss", "mmd_loss", "loss"}
    assert sum(value for name, value in result.losses.items() if name != "loss") == pytest.approx(result.losses["loss"])
    assert load_clip(str(result.model))
    assert json.loads(Path("out/train.json").read_text())["recipe"]["seed"] == 3
    assert [entry for entry in heard if entry[0] == "training"] == [("training", step, 3) for step in range(4)]
    assert ("image vectors", 48, 48) in heard
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_system_follows_from_the_class_of_a_recipe(recipe: Path) -> None:
    settings = dialog_train.load_recipe(recipe, ["beta=0.5"], system="third-tower")
    result = dialog_train.train(settings)
    assert (result.model / "third_tower.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "recipe file recipe.toml does not say its system: add system = NAME, known: clip, close"),
        ({"system": "drafts"}, "did you mean 'draft'"),
        ({"system": "draft", "switches": ["export"]}, "unknown switch 'export'; did you mean 'export-hf'"),
        ({"system": "draft", "overrides": ["optim.warmup=1"]}, "did you mean 'warmup_steps'"),
        ({"system": "clip", "of": "draft"}, "system 'clip' takes a ClipRecipe, got a DraftRecipe"),
        ({"of": "draft", "overrides": ["seed=1"]}, "overrides change a recipe that is read from a file"),
    ],
)
def test_wrong_use_from_python(recipe: Path, options: dict[str, Any], said: str) -> None:
    given = dialog_train.load_recipe(recipe, system=options.pop("of")) if "of" in options else "recipe.toml"
    with pytest.raises(UsageError, match=said):
        dialog_train.train(given, **options)
    assert not Path("out").exists()


@pytest.mark.slow
def test_embed(
    tiny_clip: Path, tiny_dialogues: Path, run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dialogues", str(tiny_dialogues), "--model", str(tiny_clip), "--workers", "0", "--device", "cpu"]
    assert run(["embed", *arguments, "--out", "vectors"]) == 0
    assert capsys.readouterr().out.startswith("48 image vectors in vectors (")
    assert run_script("embed", *arguments, "--out", "vectors") == 0
    assert "there already: 3 of 3 shards" in capsys.readouterr().out


LAUNCH = [str(BIN / "accelerate"), "launch", "--cpu"]
"""In a process of its own: after an error, the training looks at the command line of what launched it."""
MODULE = ["-m", "dialog_train", "draft"]
QUIET = [str(BIN / "accelerate"), "launch", "-q", "--cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "target", "more", "code"),
    [
        ([], MODULE, [], 2),
        ([], MODULE, ["--processes", "2"], 2),
        # Accelerate's own code for any error is 1; ended before its traceback, it is that of SIGTERM.
        (QUIET, MODULE, [], 1),
        (LAUNCH, MODULE, [], -15),
        (LAUNCH, [str(ROOT / "train" / "draft.py")], [], -15),
        ([*LAUNCH, "--num_processes", "2"], MODULE, [], -15),
    ],
)
def test_an_error_ends_in_one_line(
    recipe: Path, launcher: list[str], target: list[str], more: list[str], code: int
) -> None:
    done = launched([*launcher, *target, "--config", "recipe.toml", "--set", "loss.a=7", *more])
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert done.stderr.splitlines()[-1].startswith("error: 'loss.a=7': loss.a: ")


@pytest.mark.slow
def test_several_processes_and_an_error_of_one_ends_all_in_one_line(recipe: Path) -> None:
    """A damaged row of a derived file is found by the process that reads it."""
    command = [*MODULE, "--config", "recipe.toml", "--processes", "2"]
    done = launched(command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps") == 1
    assert json.loads(Path("out/train.json").read_text())["processes"] == 2
    (file, *_) = sorted(Path("work/training_set/rows").glob("*.arrow"))
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
        stored = table["image_id"][0].as_py().encode()
    content = file.read_bytes()
    assert content.count(stored) == 1
    file.unlink()
    file.write_bytes(content.replace(stored, stored[:-1] + b"#"))
    # In one epoch one of the two processes reads the row.
    steps = ["--set", "out=again", "--set", "optim.batch_size=16", "--set", "optim.max_steps=3"]
    done = launched([*command, *steps])
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert f"{file.name} is missing or damaged: remove it" in done.stderr


@pytest.mark.slow
def test_accelerate_launches_the_module(recipe: Path) -> None:
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    done = launched([*launch, *MODULE, "--config", "recipe.toml"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/model: 3 steps, ")


def launched(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What a command came to; "-m" begins one of Python's, which are forks."""
    folders = os.pathsep.join(str(ROOT / name) for name in ("pipeline", "train", "eval"))
    env = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if command[0] == "-m":
        return run_module(*command[1:], environment=env)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
