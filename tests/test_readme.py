"""The commands that README.md and demo.sh show are parsed by the real command line; nothing is run."""

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dialog_eval.cli import app as eval_app
from dialog_gen.cli import app
from dialog_gen.engines import ENGINES
from dialog_gen.manifests import load_manifest
from dialog_gen.models import MODELS
from dialog_gen.protocols import load_protocol
from dialog_train.close.config import CloseRecipe
from dialog_train.config import BaseRecipe, ClipRecipe, DraftRecipe, ThirdTowerRecipe, load_recipe
from dialog_train.mult_recipe import MultRecipe
from dialog_train.multitask_recipe import MultitaskRecipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS: dict[str, Any] = {
    "dialog-gen": typer.main.get_command(app),
    "dialog-eval": typer.main.get_command(eval_app),
}
RECIPES: dict[str, type[BaseRecipe]] = {
    "train/draft.py": DraftRecipe,
    "train/third_tower.py": ThirdTowerRecipe,
    "train/close.py": CloseRecipe,
    "train/clip.py": ClipRecipe,
    "train/mult.py": MultRecipe,
    "train/multitask.py": MultitaskRecipe,
}
DRAFT_FLAGS = {"--config", "--set", "--resume", "--export-hf"}
FLAGS = DRAFT_FLAGS | {
    flag
    for program in PROGRAMS.values()
    for command in program.commands.values()
    for option in command.params
    for flag in option.opts
}


def lines_of_code(text: str) -> Iterator[str]:
    """The lines of fenced and indented blocks, continued lines joined, comments cut."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    for line in "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines():
        yield re.sub(r"(^|\s)#.*", "", line).strip()


def spans_of_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def shown(text: str, program: str) -> list[str]:
    """Every use of a program in code blocks and code spans."""
    lines = [*lines_of_code(text), *spans_of_code(text)]
    return list(dict.fromkeys(line for line in lines if re.match(rf"{program} [a-z]", line)))


DEMO = (ROOT / "demo.sh").read_text(encoding="utf-8")
IN_README = [line for program in PROGRAMS for line in shown(README, program)]
# The functions of the script, called without what they are given, lack an option here and there.
IN_DEMO = [
    match.replace("$out", "out")
    for match in re.findall(r"^step (dialog-(?:gen|eval) .*)$", DEMO.replace("\\\n", " "), re.MULTILINE)
]
IN_DEMO += [
    f"{command.replace('$out', 'out')} {arguments.replace('$out', 'out')}"
    for command in re.findall(r'^evaluate\(\) \{ step (.*) "\$@"; \}$', DEMO.replace("\\\n", " "), re.MULTILINE)
    for arguments in re.findall(r"^evaluate (.*)$", DEMO, re.MULTILINE)
]


def test_the_commands_are_found() -> None:
    assert sum(" run " in line for line in IN_README) >= 3
    assert sum("dialog-eval" in line for line in IN_README) >= 5
    assert sum("dialog-eval" in line for line in IN_DEMO) == 3


@pytest.mark.parametrize("line", [*IN_README, *IN_DEMO])
def test_command(line: str) -> None:
    program, name, *arguments = shlex.split(line)
    assert name in PROGRAMS[program].commands
    if not arguments:
        return  # prose: "`dialog-gen models` lists them"
    values = PROGRAMS[program].commands[name].make_context(name, arguments).params
    if name == "run":
        assert values["model"] in MODELS
        assert values["engine"] in (None, *ENGINES)
        load_protocol(values["protocol"] or MODELS[values["model"]].protocol)
    if name == "download":
        assert values["split"] in (None, *load_manifest(values["manifest"]).splits)


@pytest.mark.parametrize("line", ["dialog-gen rnu", "dialog-gen run --model shapes-llava --imges x --out y"])
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"rnu|--imges"):
        test_command(line)


@pytest.mark.parametrize("line", shown(README, "accelerate launch"))
def test_training(line: str) -> None:
    _, _, script, *arguments = shlex.split(line)
    assert (ROOT / script).exists()
    assert {argument for argument in arguments if argument.startswith("--")} <= DRAFT_FLAGS
    pairs = list(itertools.pairwise(arguments))
    (config,) = [value for flag, value in pairs if flag == "--config"]
    load_recipe(ROOT / config, [value for flag, value in pairs if flag == "--set"], RECIPES[script])


def test_flags_in_prose() -> None:
    flags = {span.split()[0] for span in spans_of_code(README) if span.startswith("--")}
    assert flags <= FLAGS


def test_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {shlex.split(line)[1] for line in shown(README, "make") if "=" not in shlex.split(line)[1]}
    assert {"setup", "demo", "test"} <= named <= targets


@pytest.mark.parametrize("line", shown(README, "python -m"))
def test_modules(line: str) -> None:
    assert importlib.util.find_spec(shlex.split(line)[2])


def test_files() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
