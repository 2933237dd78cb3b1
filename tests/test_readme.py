"""The commands that README.md and docs/ show and the scripts type are parsed by the real command line, and not run."""

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
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
# Pages that `dialog-eval reproduce` writes are left out.
RESULTS = ("results", "pretrainings", "richer", "systems")
PAGES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.stem not in RESULTS),
]
TEXT = "\n\n".join(path.read_text(encoding="utf-8") for path in PAGES)
PROGRAMS: dict[str, Any] = {
    "dialog-gen": typer.main.get_command(app),
    "dialog-train": typer.main.get_command(train_app),
    "dialog-eval": typer.main.get_command(eval_app),
}
FILES_OF_PAGES = set(re.findall(r'^```\w+ title="([^"]+)"', TEXT, re.MULTILINE))
ADDED_BY_PAGES = {"preference"}
"""Commands that packages on pages of docs/extend/ add; tests/docs/test_extend.py runs them."""
DRAFT_FLAGS = {"--config", "--set", "--resume", "--export-hf"}


def flags_of(command: Any) -> Iterator[str]:
    for option in command.params:
        yield from option.opts
    for one in getattr(command, "commands", {}).values():
        yield from flags_of(one)


FLAGS = DRAFT_FLAGS.union(*map(flags_of, PROGRAMS.values()))


def lines_of_code(text: str) -> Iterator[str]:
    """The lines of fenced and indented blocks, continued lines joined, comments cut."""
    fenced = re.findall(r"^ *```[^\n]*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (.*)$", outside, re.MULTILINE)
    for line in "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines():
        yield re.sub(r"(^|\s)#.*", "", line).strip()


def spans_of_code(text: str) -> list[str]:
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", outside)]


def shown(text: str, program: str) -> list[str]:
    """Every use of a program in code blocks and code spans."""
    lines = [*lines_of_code(text), *spans_of_code(text)]
    return list(dict.fromkeys(line for line in lines if re.match(rf"{program} [a-z]", line)))


OUT_FOLDERS = {
    str(load_recipe(ROOT / recipe).out) for script, recipe in re.findall(r"(train/\w+\.py) --config (\S+)", TEXT)
}
IN_PAGES = [line for program in PROGRAMS for line in shown(TEXT, program)]
OF_REFERENCE = r"COMMAND|SYSTEM|\[OPTIONS\]|\|"
"""What stands in usages and prose for a part of a command line."""


def test_the_commands_are_found() -> None:
    assert len(README.splitlines()) <= 130
    assert sum("dialog-gen run" in line for program in PROGRAMS for line in shown(README, program)) >= 3
    assert sum(" run " in line for line in IN_PAGES) >= 20
    assert sum("dialog-eval" in line for line in IN_PAGES) >= 10


@pytest.mark.parametrize("line", [line for line in IN_PAGES if not re.search(OF_REFERENCE, line)])
def test_command(line: str, tmp_path: Path) -> None:
    program, name, *arguments = shlex.split(line)
    command = PROGRAMS[program].commands.get(name)
    if command is None and name in ADDED_BY_PAGES:
        return
    assert command is not None, name
    while arguments and hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    if not arguments:
        return  # prose: "`dialog-gen models` lists them"
    if arguments[-1].startswith("--") and len(arguments) == 1:
        assert arguments[0] in FLAGS  # prose: "the folder that `dialog-gen run --out` wrote"
        return
    if "--config" in arguments and program == "dialog-gen":
        # What `dialog-gen init` writes; the other required flags are in it.
        config = tmp_path / "run.toml"
        config.write_text('model = "shapes-llava"\nimages = "images"\nout = "dialogues"\n', encoding="utf-8")
        arguments[arguments.index("--config") + 1] = str(config)
    values = command.make_context(name, arguments).params
    if name == "run":
        # A model is one with a name, a Hugging Face id, what a training line of a page writes, or a server's.
        model, out = values["model"], values["model"].removesuffix("/model")
        assert model in MODELS.names() or out in OUT_FOLDERS or values["engine"] == "openai" or model.count("/") == 1
        assert values["engine"] in (None, *ENGINES.names())
        if values["protocol"] not in FILES_OF_PAGES and (model in MODELS.names() or values["protocol"]):
            load_protocol(values["protocol"] or MODELS.get(model).protocol)
    if name == "download" and not values["manifest"].endswith((".csv", ".parquet")):
        assert values["split"] in (None, *load_manifest(values["manifest"]).splits)


# Each program that the scripts type notes what it was given, and does nothing.
NOTE = """#!/bin/sh
printf '%s\\0' "${0##*/}" "$@" '
' >> "$TYPED"
"""


def typed(script: str, folder: Path) -> list[list[str]]:
    """The commands of a script that works in `folder`/out, in words."""
    programs, notes, out = folder / "bin", folder / "typed", folder / "out"
    out.mkdir()
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


def test_demo(tmp_path: Path) -> None:
    commands = typed("demo.sh", tmp_path)
    made = {"shapes-clip"}
    for words in commands:
        if words[0] == "dialog-train":
            test_command(shlex.join(words), tmp_path)
            made |= {f"{setting[4:]}/model" for setting in values(words, "--set") if setting.startswith("out=")}
        elif words[0] == "python":
            assert importlib.util.find_spec(words[2]) if words[1] == "-m" else (ROOT / words[1]).exists()
            made |= set(values(words, "--out"))
        else:
            test_command(shlex.join(words), tmp_path)
    evaluated = [words for words in commands if words[0] == "dialog-eval" and words[1] != "table"]
    assert len(evaluated) >= 2
    # What is measured was made, and stands in the last table.
    assert {
        model for words in evaluated for flag in ("--checkpoint", "--baseline") for model in values(words, flag)
    } <= made
    tabled = [words for words in commands if words[:2] == ["dialog-eval", "table"]][-1]
    assert {out for words in evaluated for out in values(words, "--out")} <= set(tabled)


@pytest.mark.parametrize("line", ["dialog-gen rnu", "dialog-gen run --model shapes-llava --imges x --out y"])
def test_a_wrong_command_would_be_found(line: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"rnu|--imges"):
        test_command(line, tmp_path)


@pytest.mark.parametrize("line", [line for line in shown(TEXT, "accelerate launch") if "train/" in line])
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
    flags = {span.split()[0].partition("=")[0] for span in spans_of_code(TEXT) if span.startswith("--")}
    # `run` reads a file of flags, and has --no-x of each.
    of_run = flags_of(PROGRAMS["dialog-gen"].commands["run"])
    offs = {"--no-FLAG", *(f"--no-{flag.removeprefix('--')}" for flag in of_run)}
    assert flags - FLAGS - offs == {"--help"}


def test_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {shlex.split(line)[1] for line in shown(TEXT, "make") if "=" not in shlex.split(line)[1]}
    assert {"setup", "demo", "test"} <= named <= targets


@pytest.mark.parametrize("line", shown(TEXT, "python -m"))
def test_modules(line: str) -> None:
    assert importlib.util.find_spec(shlex.split(line)[2])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_paths_in_prose() -> None:
    """Paths of this repository in code spans exist; so do the modules of its packages."""
    folders = ("pipeline", "train", "eval", "tests", "docs", "docker", "constraints", "data_manifests")
    paths = {span for span in spans_of_code(TEXT) if re.fullmatch(rf"({'|'.join(folders)})/[\w./-]+", span)}
    assert len(paths) > 20
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


def test_recipes_and_settings() -> None:
    """Each training that a page shows has a recipe, and its settings are keys of it."""
    lines = [line for line in shown(TEXT, "dialog-train") if "--config" in line and "SYSTEM" not in line]
    assert len(lines) > 5
    for line in lines:
        _, system, *arguments = shlex.split(line)
        pairs = list(itertools.pairwise(arguments))
        settings = [value for flag, value in pairs if flag == "--set" and value != "loss=smoothed"]
        for config in (value for flag, value in pairs if flag == "--config"):
            if config.isupper():
                continue
            load_recipe(config, settings, **({} if system == "dry-run" else {"system": system}))
