"""No text from outside gives orders to the terminal: an escape is planted in each field and captured on a pty."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from helpers.hub import TOKEN, Repo, running_hub
from helpers.inputs import png
from helpers.rows import make_row, shard_of, write_shard
from helpers.terminal import EVIL, on_terminal, raw_controls

from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.writer import open_writer

GEN = "dialog_gen"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """The working folder: `d`, a dataset, and other input, with EVIL wherever it can be."""
    config = {
        "schema_version": SCHEMA_VERSION,
        "model": EVIL,
        "protocol": EVIL,
        "engine": EVIL,
        "images": EVIL,
        EVIL: EVIL,
    }
    texts = [{"user": EVIL, "assistant": EVIL}]
    gates = [[{"gate": EVIL, "score": 1.0, "marked": True}]]
    with open_writer(str(tmp_path / "d"), config) as store:
        made = {"model": EVIL, "protocol": EVIL, "engine": EVIL}
        row = make_row(1, image_id=EVIL, caption=EVIL, url=EVIL, texts=texts, gates=gates, **made)
        rejected = make_row(2, "rejected", image_id=f"2{EVIL}", reason=EVIL, detail=EVIL, raw=[EVIL])
        write_shard(store, shard_of("s", 2), [row, rejected])
    return tmp_path


@pytest.mark.parametrize(
    "command", ["status", "stats", "verify", "report --out page.html", "export --to llava --out exported", "gate"]
)
def test_a_dataset(evil: Path, command: str) -> None:
    name, *options = command.split()
    code, said = on_terminal(evil, GEN, name, "d", *options)
    assert code == 0, said
    assert raw_controls(said) == []
    if name in ("status", "stats"):
        assert r"\x1b]0;PLANT\x07\x1b[2J" in said


@pytest.mark.parametrize("command", ["status", "verify", "compact --out merged", "stats"])
def test_names_of_sidecars_and_files(evil: Path, command: str) -> None:
    (evil / "d" / "shards" / f"{EVIL}.json").write_text("{}")
    (evil / "d" / "data" / f"{EVIL}.parquet").write_text("")
    name, *options = command.split()
    code, said = on_terminal(evil, GEN, name, "d", *options)
    assert raw_controls(said) == []
    if name != "stats":
        assert "PLANT" in said
        assert code == {"status": 0, "verify": 1, "compact": 2}[name]


def test_a_dry_run(evil: Path) -> None:
    folder = evil / "images"
    folder.mkdir()
    (folder / f"{EVIL}.png").write_bytes(png(1))
    (evil / "p.toml").write_text(f"[[turns]]\nuser = {json.dumps(EVIL).replace(chr(127), '')}\n")
    run = (GEN, "run", "--model", "shapes-llava", "--out", EVIL, "--dry-run", "--protocol", "p.toml", "--images")
    code, said = on_terminal(evil, *run, "images")
    assert (code, raw_controls(said)) == (0, [])
    assert "PLANT" in said
    with tarfile.open(evil / f"{EVIL}.tar", "w") as tar:
        for name, data in ((f"{EVIL}.png", png(1)), (f"{EVIL}.json", b"{")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    code, said = on_terminal(evil, *run, f"{EVIL}.tar")
    assert (code, raw_controls(said)) == (0, [])
    assert "PLANT" in said


@pytest.mark.parametrize(
    "arguments",
    [
        (GEN, EVIL),
        (GEN, "status", EVIL),
        (GEN, "gates", f"--{EVIL}"),
        (GEN, "run", "--model", EVIL, "--images", "d", "--out", "y"),
        (GEN, "run", "--model", "shapes-llava", "--images", EVIL, "--out", "y"),
        (GEN, "run", "--model", "shapes-llava", "--images", "x", "--out", "y", f"--limit-{EVIL}"),
        (GEN, "gate", "d", "--gates", EVIL),
        (GEN, "gate", "d", "--gates", "gates.toml"),
        (GEN, "download", f"{EVIL}.csv", "--out", "to"),
        (GEN, "download", "manifest.toml", "--out", "to"),
        ("dialog_train", EVIL),
        ("dialog_train", "draft", "--config", EVIL),
        ("dialog_train", "draft", "--config", "recipe.toml"),
        ("dialog_train", "draft", "--config", "draft-shapes", "--set", EVIL),
        ("dialog_train", "draft", "--config", "draft-shapes", "--set", f"seed={EVIL}"),
        ("dialog_eval.cli", "table", EVIL, "--out", "t.md"),
        ("dialog_eval.cli", "retrieval", "--out", "o.json", "--checkpoint", EVIL, "--images", EVIL, "--captions", EVIL),
    ],
)
def test_arguments_and_files_of_the_user(evil: Path, arguments: tuple[str, ...]) -> None:
    quoted = json.dumps(EVIL).replace("\x7f", "\\u007f")
    (evil / "gates.toml").write_text(f"[{quoted}]\nmin = 1\n")
    (evil / "recipe.toml").write_text(f"{quoted} = {quoted}\n")
    (evil / "manifest.toml").write_text(f"{quoted} = {quoted}\n")
    (evil / f"{EVIL}.csv").write_text("a,b\n1,2\n")
    code, said = on_terminal(evil, *arguments)
    assert code == 2, said
    assert raw_controls(said) == []
    assert "PLANT" in said
    assert "Traceback" not in said


def test_pull(evil: Path) -> None:
    files = {path.relative_to(evil / "d").as_posix(): path.read_bytes() for path in (evil / "d").rglob("*.*")}
    with running_hub() as hub:
        hub.repos["me/evil"] = Repo()
        hub.repos["me/evil"].commit({**files, f"data/{EVIL}.parquet": b"x"})
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(evil / "hf")}
        code, said = on_terminal(evil, GEN, "pull", "me/evil", "--out", "pulled", **environment)
    assert raw_controls(said) == []
    assert "PLANT" in said
    assert code == 1
