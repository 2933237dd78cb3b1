"""`dialog-gen init`, and `dialog-gen run --config FILE`."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
import typer.main
from helpers.cli import Cli
from helpers.forks import run_module
from helpers.inputs import write_images
from helpers.programs import forked_programs
from helpers.rows import files_of

import dialog_gen
from dialog_gen.cli.app import app
from dialog_gen.cli.config import settings_of
from dialog_gen.cli.generate import run
from dialog_gen.protocols.protocol import load_protocol

FILE = 'model = "shapes-llava"\nimages = "images"\nout = "out"\n'
# What a user may put into a template's placeholder.
PLACEHOLDERS = {
    "<integer>": "7",
    "<number>": "0.5",
    '<"text">': '"words"',
    '<["text", ...]>': '["http://a/v1", "http://b/v1"]',
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The keyword arguments of each call of `dialog_gen.generate`, which does nothing else."""
    found = list[dict[str, Any]]()

    def generate(*, on_progress: object, **arguments: Any) -> Any:
        found.append(arguments)
        return SimpleNamespace(summary={"json": True}, text="text", problem=None)

    monkeypatch.setattr(dialog_gen, "generate", generate, raising=False)
    return found


def flags() -> dict[str, Any]:
    """Each flag of `run` -> its parameter, as the command line knows them."""
    command: Any = typer.main.get_command(app)
    parameters = [one for one in command.commands["run"].params if one.name not in ("config", "help")]
    return {one.opts[0].removeprefix("--").replace("-", "_"): one for one in parameters}


def test_the_file_says_what_the_flags_say(dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]]) -> None:
    (workplace / "run.toml").write_text(
        f'{FILE}limit = 5\ntemperature = 1\ndeterministic = true\nimage_format = "png"\nendpoint = ["http://a", "b"]\n'
    )
    words = "--model shapes-llava --images images --out out --limit 5 --temperature 1 --deterministic"
    dialog_gen_cli("run", *words.split(), "--image-format", "png", "--endpoint", "http://a", "--endpoint", "b")
    assert dialog_gen_cli("run", "--config", "run.toml").code == 0
    assert calls[0] == calls[1]
    assert calls[0]["temperature"] == 1.0


def test_flags_override_the_file(dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]]) -> None:
    (workplace / "run.toml").write_text(f"{FILE}limit = 5\nseed = 3\n")
    for given in (("--limit", "9", "--config", "run.toml"), ("--config", "run.toml", "--limit", "9", "--out", "other")):
        assert dialog_gen_cli("run", *given).code == 0
    assert [(call["limit"], call["seed"], call["out"]) for call in calls] == [(9, 3, "out"), (9, 3, "other")]


def off_switches() -> list[str]:
    """`--no-x` of each flag of `run` that may be absent."""
    return [f"--no-{one.opts[0].removeprefix('--')}" for one in flags().values() if not one.required]


def test_a_flag_switches_off_what_the_file_says(
    dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]]
) -> None:
    """For every flag: a file that sets it and its --no-FLAG give the call of a file that does not set it."""
    (workplace / "run.toml").write_text(FILE)
    assert dialog_gen_cli("run", "--config", "run.toml").code == 0
    values = {int: "70", float: "70", str: '"words"', list[str]: '["words"]', bool: "true"}
    lines = list[str]()
    for one in settings_of(run):
        kind = next((kind for kind in get_args(one.kind) if kind is not type(None)), one.kind)
        # The last choice is none of the defaults.
        value = (
            f'"{get_args(one.kind)[-1]}"'
            if get_origin(one.kind) is Literal
            else "0.5"
            if one.most == 1
            else values[kind]
        )
        lines += [] if one.is_required else [f"{one.key} = {value}"]
    (workplace / "all.toml").write_text(FILE + "\n".join(lines))
    assert dialog_gen_cli("run", "--config", "all.toml").code == 0
    assert dialog_gen_cli("run", "--config", "all.toml", *off_switches()).code == 0
    bare, full, emptied = calls
    assert emptied == bare
    assert [name for name in bare if full[name] == bare[name]] == ["model", "images", "out"]


def test_the_last_of_a_switch_counts_and_values_given_stay(
    dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]]
) -> None:
    (workplace / "run.toml").write_text(f"{FILE}limit = 5\nkeep_going = true\n")
    for given in (
        ["--no-keep-going", "--keep-going", "--no-limit", "--limit", "3"],
        ["--keep-going", "--no-keep-going"],
        ["--limit", "3", "--no-limit"],
        ["--limit=3", "--no-limit", "--limit", "4", "--no-limit", "--endpoint", "http://a", "--no-endpoint"],
    ):
        assert dialog_gen_cli("run", "--config", "run.toml", *given).code == 0
    wanted = [(3, True), (5, False), (None, True), (None, True)]
    assert [(call["limit"], call["keep_going"]) for call in calls] == wanted
    assert calls[-1]["endpoint"] is None
    # Without a file, too.
    flags = ["--model", "m", "--images", "images", "--out", "out", "--limit", "4", "--no-limit"]
    assert dialog_gen_cli("run", *flags).code == 0
    assert calls[-1]["limit"] is None


@pytest.mark.parametrize("flag", ["--no-model", "--no-config", "--no-limits", "--no-dry-run=1"])
def test_what_cannot_be_switched_off(dialog_gen_cli: Cli, workplace: Path, flag: str) -> None:
    (workplace / "run.toml").write_text(FILE)
    result = dialog_gen_cli("run", "--config", "run.toml", flag)
    assert result.code == 2
    assert flag.partition("=")[0] in result.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("limitt = 5", ["limitt: unknown key", "did you mean 'limit'?"]),
        ("max-tokens = 5", ["max-tokens: unknown key", "did you mean 'max_tokens'?"]),
        ("config = 'x'", ["config: unknown key"]),
        ('limit = "5"', ["limit", "must be a whole number", "'5'"]),
        ("seed = 1.5", ["seed", "must be a whole number", "1.5"]),
        ("seed = true", ["seed", "must be a whole number", "True"]),
        ("limit = 0", ["limit", "must be at least 1", "0"]),
        ("max_losses = 2", ["max_losses", "must be at most 1"]),
        ("max_losses = nan", ["max_losses", "finite number"]),
        ('deterministic = "yes"', ["deterministic", "true or false", "'yes'"]),
        ('image_format = "gif"', ["image_format", "'jpeg' or 'png'", "'gif'"]),
        ("endpoint = 3", ["endpoint", "list", "3"]),
        ("[run]\nlimit = 3", ["run: unknown key"]),
        ("limit = ", ["not valid TOML"]),
    ],
)
def test_mistakes_in_the_file(
    dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]], line: str, said: list[str]
) -> None:
    (workplace / "run.toml").write_text(f"{FILE}{line}\n")
    ended = dialog_gen_cli("run", "--config", "run.toml")
    assert ended.mistake.startswith("error: config file run.toml")
    assert all(word in ended.err for word in said)
    assert calls == []


def test_no_such_file(dialog_gen_cli: Cli) -> None:
    assert "config file none.toml: No such file" in dialog_gen_cli("run", "--config", "none.toml").mistake


def test_what_the_file_lacks_must_be_given(dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]]) -> None:
    (workplace / "run.toml").write_text('model = "shapes-llava"\nimages = "images"\n')
    ended = dialog_gen_cli("run", "--config", "run.toml")
    assert (ended.code, calls) == (2, [])
    assert "--out" in ended.err
    assert dialog_gen_cli("run", "--config", "run.toml", "--out", "x").code == 0


def test_paths_in_the_file_are_relative_to_it(
    dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "project" / "models" / "mine").mkdir(parents=True)
    (workplace / "home").mkdir()
    monkeypatch.setenv("HOME", str(workplace / "home"))
    file = workplace / "project" / "run.toml"
    file.write_text('model = "models/mine"\nimages = "p/*.jpg"\nout = "out/"\nprotocol = "p.toml"\ngates = "text"\n')
    assert dialog_gen_cli("run", "--config", "project/run.toml").code == 0
    file.write_text('model = "shapes-llava"\nimages = "s3://b/photos"\nout = "/data/out"\nprotocol = "llava-3qa"\n')
    assert dialog_gen_cli("run", "--config", "project/run.toml").code == 0
    file.write_text('model = "org/name"\nimages = "~/photos"\nout = "out"\ngates = "mine.toml"\n')
    assert dialog_gen_cli("run", "--config", "project/run.toml", "--out", "here").code == 0
    named = ("model", "images", "out", "protocol", "gates")
    assert [tuple(call[name] for name in named) for call in calls] == [
        ("project/models/mine", "project/p/*.jpg", "project/out/", "project/p.toml", "text"),
        ("shapes-llava", "s3://b/photos", "/data/out", "llava-3qa", None),
        ("org/name", str(workplace / "home/photos"), "here", None, "project/mine.toml"),
    ]
    monkeypatch.chdir(workplace / "project")
    file.write_text(FILE)
    assert dialog_gen_cli("run", "--config", "run.toml").code == 0
    assert (calls[-1]["images"], calls[-1]["out"]) == ("images", "out")


def test_init_writes_every_flag_with_its_default(
    dialog_gen_cli: Cli, workplace: Path, calls: list[dict[str, Any]]
) -> None:
    assert dialog_gen_cli("init", "project").code == 0
    text = (workplace / "project" / "run.toml").read_text()
    lines = re.findall(r"^(#?)(\w+) = (.+)$", text, re.M)
    assert sorted(key for _, key, _ in lines) == sorted(flags())
    given = {key: value for is_comment, key, value in lines if not is_comment}
    assert set(given) == {"model", "images", "out", "protocol"}
    # What is written as the default is the default: set, it changes nothing.
    with_default = {key: value for is_comment, key, value in lines if is_comment and not value.startswith("<")}
    for key, value in with_default.items():
        assert tomllib.loads(f"x = {value}")["x"] == flags()[key].default, key
    assert {key for key in flags() if flags()[key].default is None} == {*given} | {
        key for is_comment, key, value in lines if is_comment and value.startswith("<")
    }
    dialog_gen_cli("run", "--config", "project/run.toml")
    changed = re.sub(r"^#(\w+ = [^<].*)$", r"\1", text, flags=re.M)
    (workplace / "project" / "run.toml").write_text(changed)
    dialog_gen_cli("run", "--config", "project/run.toml")
    assert calls[0] == calls[1]
    # And what has none says which values it takes.
    filled = re.sub(r"^#(\w+ = )(<.*>)$", lambda found: found[1] + PLACEHOLDERS[found[2]], text, flags=re.M)
    (workplace / "project" / "run.toml").write_text(filled)
    ended = dialog_gen_cli("run", "--config", "project/run.toml")
    assert ended.code == 0, ended.err
    assert calls[2]["endpoint"] == ["http://a/v1", "http://b/v1"]
    assert None not in calls[2].values()


def test_init_overwrites_nothing(dialog_gen_cli: Cli, workplace: Path) -> None:
    (workplace / "Makefile").write_text("mine")
    before = files_of(workplace)
    assert "Makefile already" in dialog_gen_cli("init").mistake
    assert files_of(workplace) == before
    (workplace / "file").write_text("")
    assert dialog_gen_cli("init", "file/below").code == 2


def test_init_for_other_models_and_images(dialog_gen_cli: Cli, workplace: Path) -> None:
    (workplace / "photos").mkdir()
    dialog_gen_cli("init", "a/b", "--model", "blip2-opt-2.7b", "--images", "photos/")
    project = workplace / "a" / "b"
    found = tomllib.loads((project / "run.toml").read_text())
    assert (project / found["images"]).resolve() == workplace / "photos"
    assert found["model"] == "blip2-opt-2.7b"
    mine, shipped = load_protocol(str(project / "protocol.toml")), load_protocol("blip2-two-turn")
    assert (mine.turns, mine.sampling) == (shipped.turns, shipped.sampling)


def test_a_path_cannot_leave_its_string(dialog_gen_cli: Cli, workplace: Path) -> None:
    images = 'a"\nlimit = 3 #\x7f\u202e'
    dialog_gen_cli("init", "project", "--images", images)
    found = tomllib.loads((workplace / "project" / "run.toml").read_text())
    assert found["images"] == f"../{images}"
    assert "limit" not in found


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`dialog-gen` for shells."""
    with forked_programs() as folder:
        monkeypatch.setenv("PATH", folder, prepend=os.pathsep)
        yield


@pytest.mark.slow
def test_the_project_runs_as_it_is_written(workplace: Path, programs: None) -> None:
    def call(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("dialog-gen", "init", "project")
    project = workplace / "project"
    # Less than as written: vLLM takes a minute to start.
    text = (project / "run.toml").read_text()
    text = text.replace('#engine = <"text">', 'engine = "transformers"').replace("#limit = <integer>", "limit = 8")
    (project / "run.toml").write_text(text)
    make = ("make", "-C", "project")
    call(*make, "download")
    call(*make)
    found = json.loads((project / "dialogues" / "run.json").read_text())["dataset"]
    assert (found["images"], found["accepted"] > 4) == (8, True)
    assert json.loads((project / "dialogues" / "gates.json").read_text())["pairs"] >= found["accepted"]
    assert {path.name for path in project.iterdir()} >= {"report.html", "for-llava"}


@pytest.mark.slow
def test_the_record_is_the_same_as_with_flags(workplace: Path) -> None:
    write_images(workplace / "images", 3)
    (workplace / "run.toml").write_text(
        'model = "shapes-llava"\nimages = "images"\nout = "a"\nengine = "transformers"\nseed = 5\ngates = "text"\n'
    )
    given = "--model shapes-llava --images images --out b --engine transformers --seed 5 --gates text"
    for words in (["--config", "run.toml"], given.split()):
        done = run_module("dialog_gen", "run", *words)
        assert done.returncode == 0, done.stderr
    a, b = (files_of(workplace / name) for name in "ab")
    assert a.keys() == b.keys()
    for name in ("config.json", "command.json", "gates.json"):
        assert a[name] == b[name]
    assert json.loads(a["run.json"])["config"] == json.loads(b["run.json"])["config"]
