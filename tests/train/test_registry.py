"""The registries of training systems and losses, and both added from outside the package, in one file each."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.forks import run_module
from helpers.training import write_recipe

from dialog_train.losses.base import LOSSES
from dialog_train.systems.base import SYSTEMS

ROOT = Path(__file__).parents[2]
NAMES = ["clip", "close", "draft", "draft-plus", "mammut", "mult", "multitask", "third-tower"]
SYSTEM = """
from typing import Literal

from dialog_train.config import DialogueRecipe
from dialog_train.systems.base import SYSTEMS, TrainingSystem


class CaptionRecipe(DialogueRecipe):
    direction: Literal["t2i", "i2t"] = "t2i"


def train(recipe, run):
    from dialog_gen.clip.loader import load_clip
    from dialog_train.data.prepare import prepare_training_set
    from dialog_train.losses import contrastive_loss
    from dialog_train.text_tuning import PairBatches, TextTuning

    def objective(batch, encode, logit_scale):
        (captions,) = encode(batch.captions)
        loss = contrastive_loss(batch.image_vectors, captions, logit_scale, direction=recipe.direction)
        return {f"{recipe.direction}_loss": loss}

    clip = load_clip(recipe.model)
    rows = prepare_training_set(recipe, clip, run.accelerator, run.on_progress)
    system = TextTuning(clip, objective, recipe.optim)
    result = run.fit(recipe, system, PairBatches(recipe, rows, full_length=system.sees_padding))
    if "note" in run.switches:
        (recipe.out / "note.txt").write_text("done")
    return result


SYSTEMS.register("captions")(
    TrainingSystem(
        description="Captions alone, one way.", recipe=CaptionRecipe, train=train, switches={"note": "Leave a note."}
    )
)
"""
LOSS = """
from torch.nn.functional import mse_loss

from dialog_train.losses.base import LOSSES, PairLoss


def pull(image_features, text_features, logit_scale):
    # The scale has no gradient otherwise.
    return mse_loss(image_features, text_features) + 0 * logit_scale


LOSSES.register("pull")(PairLoss(description="Pulls pairs together.", function=pull, label="pull_loss"))
"""


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has another distribution, with a system and a loss, and one that is broken."""
    site = tmp_path / "site"
    info = site / "more_training-1.dist-info"
    info.mkdir(parents=True)
    (site / "caption_system.py").write_text(SYSTEM)
    (site / "pull_loss.py").write_text(LOSS)
    (site / "broken_system.py").write_text("import no_such_module_anywhere\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-training\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[dialog_train.systems]\ncaptions = caption_system\nbroken = broken_system\n"
        "[dialog_train.losses]\npull = pull_loss\n"
    )
    folders = [str(ROOT / name) for name in ("pipeline", "train", "eval")]
    paths = os.pathsep.join([str(site), *folders])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def dialog_train(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_module("dialog_train", *arguments, environment=environment, cwd=folder)


def test_what_there_is() -> None:
    assert SYSTEMS.names()[: len(NAMES)] == NAMES
    assert {"clip", "siglip", "focal"} <= set(LOSSES.names())
    recipes = [SYSTEMS.get(name).recipe for name in NAMES]
    assert len(set(recipes)) == len(recipes)
    for name in NAMES:
        assert (ROOT / "train" / f"{name.replace('-', '_')}.py").exists()
        assert len((ROOT / "train" / f"{name.replace('-', '_')}.py").read_text().splitlines()) <= 12


def test_light_until_it_trains() -> None:
    code = (
        "import sys, dialog_train, dialog_train.cli\nfrom dialog_train.systems.base import SYSTEMS\nSYSTEMS.all()\n"
        "print(*{'torch', 'transformers', 'open_clip', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_lists_and_help(outside: dict[str, str], tmp_path: Path) -> None:
    listed = json.loads(dialog_train(outside, tmp_path, "systems", "--json").stdout)
    assert list(listed) == [*NAMES, "broken", "captions"]
    assert listed["captions"] == "Captions alone, one way."
    shown = dialog_train(outside, tmp_path)
    assert shown.returncode == 2
    assert re.search(r"^  captions +Captions alone, one way.$", shown.stderr, re.M)
    assert "--note" in dialog_train(outside, tmp_path, "captions", "--help").stdout


def test_a_system_that_cannot_be_imported(outside: dict[str, str], tmp_path: Path) -> None:
    done = dialog_train(outside, tmp_path, "broken", "--config", "x.toml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: training system 'broken' of the package more-training cannot be imported")
    assert "no_such_module_anywhere" in line
    assert all(name in line for name in NAMES)


def test_an_unknown_system(outside: dict[str, str], tmp_path: Path) -> None:
    done = dialog_train(outside, tmp_path, "capitons", "--config", "x.toml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "unknown training system 'capitons'; did you mean 'captions'? Known: broken, captions, clip" in line


@pytest.mark.slow
def test_an_outside_system_trains(
    outside: dict[str, str], tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path
) -> None:
    write_recipe(tmp_path, tiny_clip, tiny_dialogues, top='direction = "i2t"')
    done = dialog_train(outside, tmp_path, "captions", "--config", "recipe.toml", "--note")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/model: 3 steps, i2t_loss ")
    assert (tmp_path / "out" / "note.txt").exists()
    wrong = dialog_train(outside, tmp_path, "captions", "--config", "recipe.toml", "--set", "direction=both")
    assert wrong.returncode == 2
    assert "direction: " in wrong.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_outside_loss_is_named_in_a_recipe(
    outside: dict[str, str], tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path
) -> None:
    write_recipe(tmp_path, tiny_clip, tiny_dialogues, top='from_scratch = true\nloss = "pull"')
    done = dialog_train(outside, tmp_path, "clip", "--config", "recipe.toml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/model: 3 steps, pull_loss ")
    wrong = dialog_train(outside, tmp_path, "clip", "--config", "recipe.toml", "--set", "loss=pul")
    assert wrong.returncode == 2
    assert "loss: unknown loss 'pul'; did you mean 'pull'? Known: clip, focal, pull, siglip" in wrong.stderr
