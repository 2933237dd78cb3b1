"""The commands that README.md shows and the scripts type are parsed by the real command line; nothing is run."""

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer

from dialog_eval.cli import app as eval_app
from dialog_gen.cli.app import app
from dialog_gen.download.manifests import load_manifest
from dialog_gen.engines.base import ENGINES
from dialog_gen.models.registry import MODELS
from dialog_gen.protocols.protocol import load_protocol
from dialog_train.api import load_recipe
from dialog_train.cli import app as train_app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS: dict[str, Any] = {
    "dialog-gen": typer.main.get_command(app),
    "dialog-train": typer.main.get_command(train_app),
    "dialog-eval": typer.main.get_command(eval_app),
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


OUT_FOLDERS = {
    str(load_recipe(ROOT / recipe).out) for script, recipe in re.findall(r"(train/\w+\.py) --config (\S+)", README)
}
IN_README = [line for program in PROGRAMS for line in shown(README, program)]


def test_the_commands_are_found() -> None:
    assert sum(" run " in line for line in IN_README) >= 3
    assert sum("dialog-eval" in line for line in IN_README) >= 5


@pytest.mark.parametrize("line", IN_README)
def test_command(line: str) -> None:
    program, name, *arguments = shlex.split(line)
    assert name in PROGRAMS[program].commands
    if not arguments:
        return  # prose: "`dialog-gen models` lists them"
    values = PROGRAMS[program].commands[name].make_context(name, arguments).params
    if name == "run":
        # A model folder is what a training line of the README writes.
        assert values["model"] in MODELS.names() or values["model"].removesuffix("/model") in OUT_FOLDERS
        assert values["engine"] in (None, *ENGINES.names())
        if values["model"] in MODELS.names() or values["protocol"]:
            load_protocol(values["protocol"] or MODELS.get(values["model"]).protocol)
    if name == "download":
        assert values["split"] in (None, *load_manifest(values["manifest"]).splits)


# Each program that the scripts type notes what it was given, and does nothing.
NOTE = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" '
' >> "$TYPED"
"""


def typed(script: str, folder: Path) -> list[list[str]]:
    """The commands of a script that works in `folder`/out, in words."""
    programs, notes, out = folder / "bin", folder / "typed", folder / "out"
    (out / "systems").mkdir(parents=True)
    (out / "systems.md").touch()  # what `dialog-eval table` would have made
    programs.mkdir()
    for name in (*PROGRAMS, "accelerate", "python"):
        (programs / name).write_text(NOTE)
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "TYPED": str(notes)}
    command = ["bash", str(ROOT / script), str(out), str(folder / "page.md")]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    return [words.split("\0") for words in notes.read_text().split("\0\n\0") if words]


def values(words: list[str], flag: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == flag]


@pytest.mark.parametrize(("script", "evaluations"), [("demo.sh", 2), ("results.sh", 11), ("systems.sh", 22)])
def test_script(script: str, evaluations: int, tmp_path: Path) -> None:
    commands = typed(script, tmp_path)
    made = {"shapes-clip"}
    for words in commands:
        if words[0] == "accelerate":
            check_training(words)
            made |= {f"{setting[4:]}/model" for setting in values(words, "--set") if setting.startswith("out=")}
        elif words[0] == "python":
            assert importlib.util.find_spec(words[2]) if words[1] == "-m" else (ROOT / words[1]).exists()
            made |= set(values(words, "--out"))
        else:
            test_command(shlex.join(words))
    evaluated = [words for words in commands if words[0] == "dialog-eval" and words[1] != "table"]
    assert len(evaluated) >= evaluations
    # What is measured was made, and stands in the last table but for what the demo had measured for its own.
    assert {
        model for words in evaluated for flag in ("--checkpoint", "--baseline") for model in values(words, flag)
    } <= made
    tabled = [words for words in commands if words[:2] == ["dialog-eval", "table"]][-1]
    missing = [
        out
        for words in evaluated[0 if script == "demo.sh" else 2 :]
        for out in values(words, "--out")
        if not any(fnmatch(out, name) for name in tabled)
    ]
    assert not missing


@pytest.mark.parametrize("line", ["dialog-gen rnu", "dialog-gen run --model shapes-llava --imges x --out y"])
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"rnu|--imges"):
        test_command(line)


@pytest.mark.parametrize("line", shown(README, "accelerate launch"))
def test_training(line: str) -> None:
    check_training(shlex.split(line))


def check_training(words: list[str]) -> None:
    _, _, script, *arguments = words
    assert (ROOT / script).exists()
    assert {argument for argument in arguments if argument.startswith("--")} <= DRAFT_FLAGS
    pairs = list(itertools.pairwise(arguments))
    (config,) = [value for flag, value in pairs if flag == "--config"]
    load_recipe(
        ROOT / config, [value for flag, value in pairs if flag == "--set"], system=Path(script).stem.replace("_", "-")
    )


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
