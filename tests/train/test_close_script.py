"""CLOSE in the loop, and train/close.py as it is run."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.systems import check_resume, check_two_processes
from helpers.training import write_recipe
from transformers import BertConfig

from dialog_gen.clip.close.checkpoint import load_close

SCRIPT = Path(__file__).parents[2] / "train" / "close.py"
CLOSE = "helpers.close:train_close"

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resumed_equals_undisturbed(tmp_path: Path, stop: int) -> None:
    check_resume(CLOSE, tmp_path, stop=stop)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    check_two_processes(CLOSE, tmp_path)


@pytest.fixture
def close(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path, run_script: Callable[..., int]) -> Callable[..., int]:
    write_recipe(
        tmp_path,
        tiny_clip,
        tiny_dialogues,
        top='tasks = ["vqa", "captioning", "entailment"]',
        optim="epochs = 1",
        tables="[decoder]\nwidth = 16\nlayers = 1\nheads = 2",
    )
    return functools.partial(run_script, "close", "--config", "recipe.toml")


def test_is_a_thin_script() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 80


@pytest.mark.parametrize("adapter", ["none", "linear"])
def test_from_dialogues_to_a_decoder(
    close: Callable[..., int], adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", "optim.max_steps=3", "--set", f"adapter={adapter}", "--set", "noise=0.1"]
    assert close(*arguments) == 0
    assert "3 steps, text_loss" in capsys.readouterr().out
    # Without an adapter no image is looked at.
    assert Path("work/vectors").exists() == (adapter != "none")
    found = load_close(Path("out/model"))
    assert (found.adapter.kind, found.recipe["noise"]) == (adapter, 0.1)
    assert json.loads(Path("out/train.json").read_text())["steps"] == 3
    assert close(*arguments) == 2
    assert close(*arguments, "--resume", "auto") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "noise=x"], "noise"),
        (["--set", "data.dialogues=nowhere"], "nowhere"),
        (["--set", "optim.batch_size=500"], "48"),
        (["--set", "decoder.name=./none"], "cannot be loaded as a T5"),
        (["--set", "decoder.name=./bert"], "cannot be loaded as a T5 with its tokenizer (it is of the kind 'bert')"),
    ],
)
def test_wrong_use(
    close: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    BertConfig().save_pretrained("bert")
    assert close(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert not Path("out").exists()
