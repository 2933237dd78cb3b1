import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.engine import EVERY, ScriptedEngine
from helpers.forks import run_module
from helpers.inputs import png, sha256, write_files, write_images
from helpers.model_folders import LLAVA as CONFIG
from helpers.model_folders import TOKENIZER, model_folder, weights
from helpers.rows import files_of, rows_of
from safetensors.torch import load_file, save_file

import dialog_gen
from dialog_gen.core.extras import install_command
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.download.manifests import shipped_manifests
from dialog_gen.download.url_lists import ImagesSummary
from dialog_gen.engines.start import EngineSpec
from dialog_gen.models.registry import MODELS
from dialog_gen.models.templates import LLAVA_CHAT_TEMPLATE
from dialog_gen.protocols.protocol import shipped_protocols

IMAGES = 6
RUN = ("run", "--model", "shapes-llava", "--images", "images", "--out", "out")
SHARDS = ("--shard-size", "2")

LLAVA = json.dumps({"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": {}})
PROTOCOL = '[[turns]]\nuser = "Where is {place}?"\n'


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: images, and what is wrong in all the ways below."""
    write_images(tmp_path / "images", IMAGES)
    (tmp_path / "empty").mkdir()
    files = {
        "file.txt": b"text",
        "other/holds.txt": b"",
        "model/config.json": b'{"model_type": "llava"}',
        "placeholder.toml": PROTOCOL.encode(),
        "broken.toml": b"[[turns",
        "no-template/config.json": LLAVA.encode(),
        "no-template/model.safetensors": weights().encode(),
        "no-template/tokenizer.json": TOKENIZER.encode(),
        "pickled/config.json": LLAVA.encode(),
        "pickled/chat_template.jinja": LLAVA_CHAT_TEMPLATE.encode(),
        "pickled/pytorch_model.bin": b"",
        "no-model/readme.txt": b"",
        "damaged.tar": b"\1" * 2000,
    }
    write_files(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    # A mistake that gets past the checks fails here and loads nothing.
    monkeypatch.setattr(EngineSpec, "start", lambda *_: pytest.fail("an engine is started"))
    return tmp_path


@pytest.fixture
def engine(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """What every run is given in place of a model."""
    scripted = ScriptedEngine()

    def start(spec: EngineSpec, log: Path) -> ScriptedEngine:
        scripted.closed = 0
        return scripted.start(log)

    monkeypatch.setattr(EngineSpec, "start", start)
    return scripted


def with_other(flag: str, value: str, command: tuple[str, ...] = RUN) -> tuple[str, ...]:
    """The command with another value for a flag, or with one flag more."""
    if flag not in command:
        return (*command, flag, value)
    at = command.index(flag) + 1
    return (*command[:at], value, *command[at + 1 :])


DOWNLOAD = ("download", "shapes", "--out", "out")
# name -> command, and what its one line must say: the value received and what to do
MISTAKES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "model": (
        with_other("--model", "shapes-lava"),
        ["unknown model 'shapes-lava'", "did you mean 'shapes-llava'?", "llava-1.5-7b", "Hugging Face id", "folder"],
    ),
    "model folder": (with_other("--model", "./nowhere"), ["unknown model './nowhere'", "existing folder"]),
    "no model": (with_other("--model", "no-model"), ["no-model is no model folder", "config.json"]),
    "no chat template": (
        with_other("--model", "no-template"),
        ["no-template has no chat template", "chat_template.jinja", "Add the model's own template"],
    ),
    "pickled weights": (
        with_other("--model", "pickled"),
        ["only pickled weights (pytorch_model.bin)", "safetensors are needed", "Convert them"],
    ),
    "revision": (with_other("--revision", "v1"), ["'shapes-llava'", "no revision 'v1'"]),
    "protocol": (
        with_other("--protocol", "lava-3qa"),
        ["unknown protocol 'lava-3qa'", "did you mean 'llava-3qa'?", "blip2-two-turn", "give a .toml file"],
    ),
    "protocol file": (with_other("--protocol", "no.toml"), ["no.toml", "No such file"]),
    "protocol, broken": (with_other("--protocol", "broken.toml"), ["broken.toml is not valid TOML"]),
    "placeholder": (
        with_other("--protocol", "placeholder.toml"),
        ["placeholder.toml", "turn 1: unknown placeholder {place}", "Write {{ and }}"],
    ),
    "engine": (with_other("--engine", "vlm"), ["--engine vlm", "did you mean 'vllm'?", "transformers"]),
    "dtype": (with_other("--dtype", "float23"), ["--dtype float23", "did you mean 'float32'?", "bfloat16"]),
    "images missing": (with_other("--images", "imges"), ["nothing is at", "/imges'", "expected *.tar"]),
    "images, none match": (with_other("--images", "images/*.jpg"), ["no file matches", "*.jpg", "expected *.tar"]),
    "images, empty": (with_other("--images", "empty"), ["no images in", "/empty: looked for *.tar"]),
    "images, a file": (with_other("--images", "file.txt"), ["no images in", "/file.txt: looked for *.tar"]),
    "images, damaged": (with_other("--images", "damaged.tar"), ["damaged.tar is damaged", "download it again"]),
    "images, no name": (with_other("--images", ""), ["--images is empty", "give it a value"]),
    "images, protocol": (with_other("--images", "foo://x"), ["cannot open foo://x", "not known: foo"]),
    # Port 9 of loopback: nothing listens there.
    "images, no server": (
        with_other("--images", "http://127.0.0.1:9/x.tar"),
        ["cannot read http://127.0.0.1:9/x.tar", "check the address"],
    ),
    "out, no name": (with_other("--out", ""), ["--out is empty", "give it a value"]),
    "out in images": (with_other("--out", "images/out"), ["--out images/out lies in --images", "Choose another"]),
    "out is images": (with_other("--out", "images"), ["--out images lies in --images"]),
    "out holds others": (with_other("--out", "other"), ["other is no dataset folder", "'holds.txt'", "choose another"]),
    "out is a model": (with_other("--out", "model"), ["model is no dataset folder, its config.json", "choose another"]),
    "out is a file": (with_other("--out", "file.txt"), ["cannot write file.txt: File exists", "Choose another"]),
    "out below a file": (with_other("--out", "file.txt/out"), ["cannot write file.txt/out: Not a dir", "Choose ano"]),
    "out in no place": (with_other("--out", "/proc/out"), ["cannot write /proc/out: No such file", "Choose another"]),
    "out without permission": (with_other("--out", "/sys/out"), ["cannot write /sys/out: ", "another --out"]),
    "out, protocol": (with_other("--out", "foo://x"), ["cannot open foo://x", "not known: foo"]),
    "temperature": (with_other("--temperature", "9"), ["--temperature 9", "must be at most 2"]),
    "temperature, nan": (with_other("--temperature", "nan"), ["--temperature nan"]),
    "top-p": (with_other("--top-p", "0"), ["--top-p 0", "must be at least 1e-06"]),
    "max-tokens": (with_other("--max-tokens", "0"), ["--max-tokens 0", "must be at least 1"]),
    "manifest": (
        ("download", "shape", "--out", "out"),
        ["unknown manifest 'shape'", "did you mean 'shapes'?", ".toml"],
    ),
    "split": (with_other("--split", "tset", DOWNLOAD), ["shapes has no split 'tset'", "did you mean 'test'?", "val"]),
    "download to a file": (with_other("--out", "file.txt", DOWNLOAD), ["cannot use file.txt", "File exists"]),
    "command": (("rnu",), ["unknown command 'rnu'", "did you mean 'run'?", "verify"]),
    **{
        f"{command} of nothing": ((command, "nowhere"), ["nowhere does not exist", "`dialog-gen run --out`"])
        for command in ("status", "verify")
    },
    **{
        f"{command} of another folder": ((command, "other"), ["other is no dataset folder", "`dialog-gen run --out`"])
        for command in ("status", "verify")
    },
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(dialog_gen_cli: Cli, workplace: Path, name: str) -> None:
    arguments, said = MISTAKES[name]
    before = files_of(workplace)
    ended = dialog_gen_cli(*arguments)
    assert ended.code == 2
    assert [words for words in said if words not in ended.error] == []
    assert files_of(workplace) == before
    assert not (workplace / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # What is said is typer's own.
        ((*RUN, "--oot", "x"), "--oot .*--out"),
        ((*RUN, "more"), r"unexpected extra argument(?:\(s\))? \(more\)"),
        (RUN[:-2], "Missing option '--out'"),
        ((*RUN[:-2], "--out"), "Option '--out' requires an argument"),
        (("verify",), "Missing argument 'DIR'"),
        (("download", "shapes"), "Missing option '--out'"),
    ],
)
def test_wrong_flags(dialog_gen_cli: Cli, workplace: Path, arguments: tuple[str, ...], said: str) -> None:
    before = files_of(workplace)
    ended = dialog_gen_cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(f"error: .*{said}.*\\.\n", ended.err)
    assert files_of(workplace) == before


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--limit", "0", "must be at least 1"),
        ("--limit", "many", "must be a whole number"),
        ("--limit", "1.5", "must be a whole number"),
        ("--seed", "-1", "must be at least 0"),
        ("--max-losses", "2", "must be at most 1"),
        ("--max-losses", "a lot", "must be a number"),
        ("--image-format", "bmp", "'bmp' is not one of 'jpeg', 'png'"),
    ],
)
def test_wrong_values_of_flags(dialog_gen_cli: Cli, workplace: Path, flag: str, value: str, said: str) -> None:
    before = files_of(workplace)
    mistake = dialog_gen_cli(*RUN, flag, value).mistake
    assert re.fullmatch(rf"error: {flag} {value}: {said}; `.* run -h` explains the options\.\n", mistake)
    assert files_of(workplace) == before


def test_a_download_leaves_what_its_manifest_says(
    dialog_gen_cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this very list: a shipped manifest has the same name."""
    done = ImagesSummary(out=Path("out"), images=1, shards=1, already_complete=False)
    monkeypatch.setattr("dialog_gen.download.url_lists.download_url_list", lambda *_, **__: done)
    (workplace / "shapes.csv").write_text("url,caption\n")
    assert dialog_gen_cli("download", "shapes.csv", "--out", "out").code == 0
    noted = json.loads((workplace / "out" / "manifest.json").read_text())
    assert (noted["description"], noted["licence"]) == ("The URLs in shapes.csv", "that of each image")


def test_no_arguments_show_the_help(dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli()
    assert (ended.code, ended.out) == (2, "")
    assert re.match("Usage: .*dialog-gen", ended.err)
    assert [name for name in ("download", "run", "status", "verify", "models") if name not in ended.err] == []


def test_version(dialog_gen_cli: Cli) -> None:
    assert dialog_gen_cli("--version") == (0, f"{dialog_gen.__version__}\n", "")


def test_another_configuration_is_refused_with_the_keys_that_differ(
    dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine
) -> None:
    assert dialog_gen_cli(*RUN).code == 0
    before = files_of(workplace)
    for extra in ((), ("--dry-run",)):
        ended = dialog_gen_cli(*RUN, "--seed", "1", "--temperature", "0.25", *extra)
        assert ended.code == 2
        assert "(temperature: 0.7 there, 0.25 now; seed: 0 there, 1 now)" in ended.error
        assert "needs a new --out" in ended.error
        assert files_of(workplace) == before
    # These cost time only.
    assert dialog_gen_cli(*RUN, "--limit", "3", "--max-in-flight", "2", "--max-losses", "0").code == 0
    assert engine.starts == 1


def test_vllm_is_not_installed(
    dialog_gen_cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("dialog_gen.engines.vllm.find_spec", lambda name: None)
    before = files_of(workplace)
    ended = dialog_gen_cli(*RUN, "--engine", "vllm")
    assert ended.code == 2
    assert "--engine vllm needs an extra" in ended.error
    assert install_command("vllm") in ended.error
    ended = dialog_gen_cli(*RUN, "--dry-run")
    assert ended.code == 0
    assert "engine: transformers" in ended.out
    assert "vllm is not installed: going on with the much slower transformers engine" in caplog.text
    assert files_of(workplace) == before


def test_vllm_does_not_have_the_architecture(
    dialog_gen_cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    config = {
        "architectures": ["Blip2ForConditionalGeneration"],
        "model_type": "blip-2",
        "text_config": {"model_type": "t5"},
    }
    model_folder(workplace / "t5", config, chat_template__jinja=None)
    # The folder has no whole model: only what comes after its trial is of interest.
    monkeypatch.setattr("dialog_gen.generation.plan.try_image", lambda *given, **options: None)
    ended = dialog_gen_cli(*with_other("--model", "t5"), "--engine", "vllm")
    assert ended.code == 2
    assert "vLLM does not serve t5" in ended.error
    assert "use --engine transformers" in ended.error
    assert "engine: transformers" in dialog_gen_cli(*with_other("--model", "t5"), "--dry-run").out


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "cut weights": ({"model__safetensors": weights("w" * 99)[:-1]}, "model.safetensors is no whole safetensors file"),
    "no tokenizer": ({"tokenizer__json": None}, "has no tokenizer.json"),
    "cut tokenizer": (
        {"tokenizer__json": TOKENIZER[:-1], "tokenizer_config__json": '{"added_tokens_decoder": {"0": {}}}'},
        "tokenizer.json is no whole tokenizer",
    ),
    "unknown type": ({"config": CONFIG | {"model_type": "llava_of_2099"}}, "has no such model_type"),
    "unknown image token": ({"config": CONFIG | {"image_token_id": 7}}, "image_token_id = 7 is no token"),
    "endless template": ({"chat_template__jinja": "{{ 'a' * 10**10 }}"}, "takes more than 5 seconds or 512 MiB"),
    "template without the image": (
        {"chat_template__jinja": "{{ messages[0]['content'][-1]['text'] }}"},
        "holds no placeholder for the image",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_run_refuses_what_the_check_of_a_model_refuses(dialog_gen_cli: Cli, workplace: Path, name: str) -> None:
    files, said = DAMAGED[name]
    model_folder(workplace / "mine", **files)
    before = files_of(workplace)
    checked = dialog_gen_cli("models", "--check", "mine").mistake
    assert said in checked
    assert dialog_gen_cli(*with_other("--model", "mine"), "--protocol", "paligemma-questions").mistake == checked
    assert files_of(workplace) == before


def without_one_tensor(file: Path) -> None:
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1" in name)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.slow
def test_the_engine_does_not_start(
    dialog_gen_cli: Cli,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    shutil.copytree(Path(dialog_gen.__file__).parent / "shapes" / "checkpoints" / "shapes-llava", "cut")
    without_one_tensor(Path("cut/model.safetensors"))
    told = dialog_gen_cli(*with_other("--model", "cut"), "--engine", "transformers")
    assert told.code == 2
    assert "lack 1 tensor" in told.err.splitlines()[-1]
    # What the trial of a model misses, its engine says.
    monkeypatch.setattr("dialog_gen.generation.plan.try_image", lambda *given, **options: None)
    ended = dialog_gen_cli(*with_other("--model", "cut"), "--engine", "transformers")
    assert ended.code == 2
    # In a process of its own this is all it says: transformers writes to pytest's stream, which no descriptor leads to.
    error = ended.err.splitlines()[-1]
    assert error.startswith("error: transformers did not start on cut: ")
    assert "the weights lack 1 tensor" in error
    assert error.endswith(f"(log: {workplace}/out/engine.log)")
    assert not Path("out/.tmp").exists()


def test_a_run_and_what_is_said_of_it(dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine) -> None:
    ended = dialog_gen_cli(*RUN, *SHARDS, "--limit", "4")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("out: 4 images in 2 shards\n  accepted           4  100.0%\n")
    assert "this run: 4 images in" in ended.out
    ended = dialog_gen_cli(*RUN, *SHARDS, "--json")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert (report["run"]["images"], report["run"]["images_already_done"]) == (2, 4)
    assert report["dataset"]["images"] == report["dataset"]["accepted"] == IMAGES
    assert report["config"]["model"] == "shapes-llava"
    assert unsealed(Path("out/run.json").read_bytes()) == report
    before = files_of(workplace)
    ended = dialog_gen_cli(*RUN, *SHARDS)
    assert "nothing to do: every shard is there, with files of the right sizes" in ended.out
    assert engine.starts == 2
    assert files_of(workplace) == before


def test_the_prompts_are_those_of_the_dry_run(dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine) -> None:
    ended = dialog_gen_cli(*RUN, "--dry-run")
    prompts = re.findall(r"turn 1: (.*)", ended.out)
    assert re.findall(r"^  (\d+\.png) \(", ended.out, re.MULTILINE) == ["00000.png", "00001.png", "00002.png"]
    dialog_gen_cli(*RUN)
    assert {repr(asked.prompt) for asked in engine.asked} == set(prompts)
    assert len(prompts) == 3


def test_losses(dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine) -> None:
    """One image of six is damaged, the answers about another are nonsense."""
    Path("images/00001.png").write_bytes(b"<html>")
    engine.malformed = {sha256(png(3)): EVERY}
    ended = dialog_gen_cli(*RUN, "--json")
    assert ended.code == 1
    assert ended.err == (
        "error: 2 of 6 images gave no dialogue, more than --max-losses 0.2 allows; "
        "out/rejects holds each with its reason.\n"
    )
    dataset = json.loads(ended.out)["dataset"]
    assert (dataset["accepted"], dataset["rejected"], dataset["unreadable"]) == (4, 1, 1)
    assert [row["status"] for row in rows_of(Path("out"), "rejects")] == ["unreadable", "rejected"]
    # Also where there is nothing left to do.
    assert dialog_gen_cli(*RUN, "--max-losses", "0.33").code == 1
    assert dialog_gen_cli(*RUN, "--max-losses", "0.34").code == 0
    assert dialog_gen_cli("verify", "out").code == 0


def test_status_and_verify(dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine) -> None:
    engine.malformed = {sha256(png(3)): EVERY}
    dialog_gen_cli(*RUN, *SHARDS)
    before = files_of(workplace)
    status, verify = dialog_gen_cli("status", "out"), dialog_gen_cli("verify", "out")
    assert (status.code, status.err, verify.code, verify.err) == (0, "", 0, "")
    assert status.out.startswith("out: 6 images in 3 finished shards\n  accepted           5\n")
    assert "model: shapes-llava" in status.out
    assert verify.out == (
        "out: 5 accepted + 1 rejected + 0 unreadable = 6 images in 3 shards, 15 question-answer pairs: "
        "all as promised\n"
    )
    found = json.loads(dialog_gen_cli("status", "out", "--json").out)
    checked = json.loads(dialog_gen_cli("verify", "out", "--json").out)
    for counts in (found, checked):
        assert {key: counts[key] for key in ("shards", "images", "accepted", "rejected", "unreadable", "problems")} == {
            "shards": 3,
            "images": 6,
            "accepted": 5,
            "rejected": 1,
            "unreadable": 0,
            "problems": [],
        }
    assert found["config"]["protocol"] == "llava-3qa"
    assert checked["pairs"] == 15
    assert files_of(workplace) == before


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[], object], str]] = {
    "a bit": (lambda: flip_a_bit(Path("out/data/images-000001.parquet")), "has another checksum than promised"),
    "cut": (lambda: os.truncate("out/data/images-000001.parquet", 100), "has 100 bytes"),
    "gone": (Path("out/data/images-000001.parquet").unlink, "data/images-000001.parquet is missing"),
    "sidecar cut": (lambda: os.truncate("out/shards/images-000001.json", 9), "shards/images-000001.json is damaged"),
    "orphan": (Path("out/shards/images-000001.json").unlink, "images-000001.parquet belongs to no finished shard"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_finds_damage_and_a_run_mends_it(
    dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine, name: str
) -> None:
    dialog_gen_cli(*RUN, *SHARDS)
    damage, said = DAMAGES[name]
    rows = rows_of(Path("out"))
    damage()
    ended = dialog_gen_cli("verify", "out")
    assert (ended.code, ended.err) == (1, "")
    assert said in ended.out
    ended = dialog_gen_cli("verify", "out", "--json")
    assert ended.code == 1
    verdict = json.loads(ended.out)
    assert verdict["problem_count"] == len(verdict["problems"]) > 0
    if name == "a bit":
        return  # only reading every byte tells
    assert dialog_gen_cli(*RUN, *SHARDS).code == 0
    assert dialog_gen_cli("verify", "out").code == 0
    assert rows_of(Path("out")) == rows


@pytest.mark.parametrize("writes_before", [0, 1, 3, 8])
def test_a_full_disk(
    dialog_gen_cli: Cli,
    workplace: Path,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    writes_before: int,
) -> None:
    dialog_gen_cli(*with_other("--out", "undisturbed"), *SHARDS)
    left = iter(range(writes_before))

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        ended = dialog_gen_cli(*RUN, *SHARDS)
    assert ended.code == 2
    assert ended.error == (
        "error: cannot write out: No space left on device. Free some space and run again; finished shards are kept.\n"
    )
    assert not Path("out/.tmp").exists()
    finished = {name: data for name, data in files_of(workplace / "out").items() if name.startswith("shards/")}
    assert bool(finished) == (writes_before == 8)
    assert dialog_gen_cli(*RUN, *SHARDS).code == 0
    assert rows_of(Path("out")) == rows_of(Path("undisturbed"))
    assert finished.items() <= files_of(workplace / "out").items()
    assert dialog_gen_cli("verify", "out").code == 0


def test_the_engine_dies(dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine) -> None:
    engine.dies_after = 4
    ended = dialog_gen_cli(*RUN, *SHARDS, "--max-in-flight", "1")
    assert ended.code == 1
    assert "the scripted engine died" in ended.error
    assert "engine.log). Finished shards are kept: run again to continue." in ended.error
    assert not Path("out/.tmp").exists()
    engine.dies_after = None
    assert dialog_gen_cli(*RUN, *SHARDS).code == 0
    assert len(rows_of(Path("out"))) == IMAGES


def test_ctrl_c_while_the_engine_starts(
    dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(spec: EngineSpec, log: Path) -> ScriptedEngine:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EngineSpec, "start", interrupted)
        ended = dialog_gen_cli(*RUN)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "interrupted: what is finished is kept, the same command goes on from there\n"
    assert not Path("out/.tmp").exists()
    assert dialog_gen_cli(*RUN).code == 0


@pytest.mark.parametrize(
    ("command", "names"),
    [("models", MODELS.names()), ("protocols", list(shipped_protocols())), ("manifests", list(shipped_manifests()))],
)
def test_lists(dialog_gen_cli: Cli, command: str, names: list[str]) -> None:
    as_text, as_json = dialog_gen_cli(command), dialog_gen_cli(command, "--json")
    assert (as_text.code, as_text.err, as_json.code, as_json.err) == (0, "", 0, "")
    header, *lines = as_text.out.splitlines()
    assert header.split()[0] == "name"
    assert [line.split()[0] for line in lines] == names
    rows: list[dict[str, Any]] = json.loads(as_json.out)
    assert [row["name"] for row in rows] == names
    assert all(row["description"] in line for row, line in zip(rows, lines, strict=True))


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(Path(dialog_gen.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def modules_after(cwd: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """`dialog-gen` in a process of its own, and what it imported."""
    code = (
        "import atexit, sys; from dialog_gen.cli.app import main; sys.argv[0] = 'dialog-gen'; "
        "atexit.register(lambda: print(*sys.modules, sep='\\n', file=sys.stderr)); main()"
    )
    ended = python("-c", code, *arguments, cwd=cwd)
    return ended, set(ended.stderr.splitlines())


def test_a_dry_run_loads_no_model_and_writes_nothing(workplace: Path) -> None:
    before = files_of(workplace)
    ended, modules = modules_after(workplace, *RUN, "--dry-run", "--engine", "vllm")
    assert ended.returncode == 0
    assert f"{IMAGES} images in 1 shard, 1 request per image" in ended.stdout
    assert ended.stdout.count("turn 1: 'USER: <image>") == 3
    assert "dialog_gen.generation.plan" in modules
    loads = ("vllm", "dialog_gen.engines.vllm.engine", "dialog_gen.engines.transformers.engine")
    assert [name for name in loads if name in modules] == []
    assert files_of(workplace) == before


def test_a_dry_run_fetches_no_weights(
    dialog_gen_cli: Cli, workplace: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = MODELS.get("shapes-llava").folder or Path()
    shutil.copytree(own, workplace / "hub", ignore=shutil.ignore_patterns("*.safetensors"))
    asked: list[str] = []

    def snapshot_download(hub_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend([hub_id, *allow_patterns])
        return str(workplace / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    hub_run = with_other("--model", "llava-1.5-7b")
    assert dialog_gen_cli(*hub_run, "--dry-run").code == 0
    assert "llava-hf/llava-1.5-7b-hf" in asked
    assert "*.safetensors" not in asked
    dialog_gen_cli(*hub_run)
    assert "*.safetensors" in asked


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    ended, modules = modules_after(tmp_path, "--help")
    assert ended.returncode == 0
    assert modules.isdisjoint({"torch", "transformers", "pyarrow", "vllm", "PIL"})


def test_a_mistake_in_a_process_of_its_own(workplace: Path) -> None:
    ended = python("-m", "dialog_gen.cli.app", *with_other("--model", "shapes-lava"), cwd=workplace)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: unknown model 'shapes-lava': did you mean 'shapes-llava'?")
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_stdout_holds_the_result_alone(workplace: Path) -> None:
    """Through a real engine: what it prints goes to its log, what this program logs to stderr."""
    write_images(workplace / "images", 12)
    ended = run_module(
        "dialog_gen.cli.app", *RUN, "--engine", "transformers", "--max-losses", "1", "--json", cwd=workplace
    )
    assert ended.returncode == 0
    report = json.loads(ended.stdout)
    assert report["dataset"]["images"] == report["run"]["images"] == 12
    assert report["engine"]["name"] == "transformers"
    assert "shard images-000000: " in ended.stderr
    assert "Traceback" not in ended.stderr
