"""Datasets of older versions of the record, stored as the code of their time made them: see tests/data/README.md."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.cli import Cli
from helpers.crashes import CRASHED, Killed, killed_at
from helpers.engine import ScriptedEngine
from helpers.rows import files_of, marks_of, rows_of

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.errors import OlderVersionError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import DIALOGUES, REJECTS, kept_pairs
from dialog_gen.dataset.upgrade import upgrade
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.start import EngineSpec

DATA = Path(__file__).parents[1] / "data"
STORED = ("v1", "v2", "v2-gated")
PATH = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])


@pytest.fixture(params=STORED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def out(name: str, tmp_path: Path) -> Path:
    """A copy of the stored dataset."""
    return Path(shutil.copytree(DATA / name, tmp_path / name))


def expected(name: str, part: str) -> list[dict[str, Any]]:
    """The rows as the old code read them, as they are to be read now."""
    rows = json.loads((DATA / f"{name}.rows.json").read_text())[part]
    for row in rows:
        row.setdefault("source_sha256", None)
        if part == "rejects":
            continue
        row.setdefault("answer_logprobs", None)
        marks = row.pop("marks", None)
        scores = {key.removeprefix("gate_"): row.pop(key) for key in list(row) if key.startswith("gate_")}
        row["gates"] = marks and [
            [
                {"gate": gate, "score": of_pairs[place], "marked": gate in marking}
                for gate, of_pairs in scores.items()
                if of_pairs is not None
            ]
            for place, marking in enumerate(marks)
        ]
    return rows


def without_bytes(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: value for key, value in row.items() if key != "images"},
        "created_at": row["created_at"].isoformat(),
    }


def check_rows(out: Path, name: str) -> None:
    folder = DatasetFolder.existing(str(out))
    for part in ("data", "rejects"):
        rows = list(folder.rows(part=part))
        assert [without_bytes(row) for row in rows] == expected(name, part)
        assert all(row["images"][0]["bytes"] for row in rows)
    assert verify(folder).problems == []


def test_the_stored_datasets_hold_what_is_tested() -> None:
    gated = expected("v2-gated", "data")
    assert len(gated) == 8
    assert {gate["gate"] for row in gated for pair in row["gates"] for gate in pair} == {
        *("empty", "repetition", "truncation", "leak", "near_duplicate", "length", "logprob")
    }
    assert {mark for row in gated for marks in marks_of(row) or () for mark in marks} == {
        "repetition",
        "leak",
        "length",
    }
    assert all(row["gates"] is None for name in ("v1", "v2") for row in expected(name, "data"))
    assert {row["status"] for row in expected("v1", "rejects")} == {"rejected", "unreadable"}


def test_rows_are_read_as_rows_of_the_current_version(out: Path, name: str) -> None:
    check_rows(out, name)
    folder = DatasetFolder(str(out))
    assert [row["gates"] for row in folder.rows(["gates"])] == [row["gates"] for row in expected(name, "data")]
    two = list(folder.rows(["gates", "image_id"]))
    assert [row["image_id"] for row in two] == [row["image_id"] for row in expected(name, "data")]
    assert list(folder.rows(["source_sha256"], part="rejects")) == [{"source_sha256": None}] * 2
    table = next(folder.tables())
    assert table.schema.equals(DIALOGUES)


def test_kept_pairs_are_those_that_no_gate_marked(tmp_path: Path) -> None:
    rows = json.loads((DATA / "v2-gated.rows.json").read_text())["data"]
    kept = [pair for row in rows for pair, marks in zip(row["texts"], row["marks"], strict=True) if not marks]
    assert len(kept) == json.loads((DATA / "v2-gated" / "gates.json").read_text())["kept"] == 17
    folder = DatasetFolder(str(DATA / "v2-gated"))
    assert [pair for row in folder.rows(["texts", "gates"]) for pair in kept_pairs(row)] == kept


def known_then(now: Any, then: Any) -> Any:
    """The part of a value whose keys an earlier version wrote, too: later ones add keys."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {key: known_then(now[key], then[key]) for key in then}
    return now


@pytest.mark.parametrize("upgraded", [False, True])
def test_every_command_reads_them(out: Path, name: str, upgraded: bool, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    if upgraded:
        assert dialog_gen_cli("upgrade", out).code == 0
    before = files_of(out)

    def said(*arguments: object) -> str:
        ended = dialog_gen_cli(*arguments)
        assert (ended.code, ended.err) == (0, ""), arguments
        return ended.out

    assert "8 accepted + 1 rejected + 1 unreadable = 10 images" in said("verify", out)
    assert "10 images in 3 finished shards" in said("status", out)
    stats = json.loads(said("stats", out, "--json"))
    if name != "v1":
        then = json.loads((DATA / f"{name}.stats.json").read_text())
        assert known_then(stats, then) == {**then, "bytes": stats["bytes"]}
        assert (stats["fallbacks"], stats["statements"]) == ({}, None)
        assert upgraded or stats["bytes"] == then["bytes"]
    assert "all 8 images" in said("report", out, "--out", tmp_path / "report.html")
    kept = ["--kept-only"] if name == "v2-gated" else []
    for to in ("llava", "messages", "texts", "webdataset"):
        pairs = 17 if kept else 24
        assert f"8 images, {pairs} question-answer pairs" in said(
            "export", out, "--to", to, "--out", tmp_path / to, *kept
        )
    said("compact", out, "--out", tmp_path / "merged")
    check_rows(tmp_path / "merged", name)
    said("compact", out, "--out", tmp_path / "bare", "--without-images")
    said("rehydrate", out, "--out", tmp_path / "whole")
    check_rows(tmp_path / "whole", name)
    for made in ("merged", "bare", "whole"):
        folder = DatasetFolder(str(tmp_path / made))
        assert folder.config()["schema_version"] == 3
        assert verify(folder).problems == []
    assert files_of(out) == before


def test_an_upgrade_changes_no_row(out: Path, name: str, dialog_gen_cli: Cli) -> None:
    config = json.loads((out / "config.json").read_text())
    manifests = {file.name: json.loads(file.read_text()) for file in (out / "shards").iterdir()}
    ended = dialog_gen_cli("upgrade", out, "--json")
    assert (ended.code, json.loads(ended.out)) == (
        0,
        {"location": str(out), "from_version": config["schema_version"], "to_version": 3, "shards": 3},
    )
    check_rows(out, name)
    assert json.loads((out / "config.json").read_text()) == {**config, "schema_version": 3}
    for file in (out / "shards").iterdir():
        changed, was = unsealed(file.read_bytes()), manifests[file.name]
        assert {key: changed[key] for key in changed if key not in ("config_sha256", "files")} == {
            "gates_sha256": None,
            "scores_sha256": {},
            "unused": {},
            **{key: was[key] for key in was if key not in ("config_sha256", "files")},
        }
        assert [entry["rows"] for entry in changed["files"]] == [entry["rows"] for entry in was["files"]]
    for part, schema in (("data", DIALOGUES), ("rejects", REJECTS)):
        for file in (out / part).iterdir():
            found = pq.read_schema(file)
            assert found.equals(schema)
            assert found.metadata[b"huggingface"] == schema.metadata[b"huggingface"]
    after = files_of(out)
    assert dialog_gen_cli("upgrade", out).out == f"{out}: version 3 of the record, nothing to do\n"
    assert files_of(out) == after
    assert not (out / ".tmp").exists()


def test_an_upgrade_that_is_killed_anywhere_goes_on_and_its_dataset_is_whole_at_every_moment(
    name: str, tmp_path: Path
) -> None:
    undisturbed = shutil.copytree(DATA / name, tmp_path / "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        steps = killed_at(patch, float("inf"), before=False)
        upgrade(str(undisturbed))
    assert steps() > 10
    for step in range(steps()):
        for before in (True, False):
            out = Path(shutil.copytree(DATA / name, tmp_path / f"{step}-{before}"))
            with pytest.MonkeyPatch.context() as patch:
                killed_at(patch, step, before=before)
                with pytest.raises(Killed):
                    upgrade(str(out))
            check_rows(out, name)
            config = DatasetFolder(str(out)).config()
            if (out / "upgrade.json").exists():
                for wanted in (config, {**config, "schema_version": 3}):
                    with pytest.raises(OlderVersionError), open_writer(str(out), wanted):
                        pass
            upgrade(str(out))
            assert files_of(out) == files_of(undisturbed), (step, before)


UPGRADE = """
import sys
from helpers.crashes import crash_at
from dialog_gen.cli.app import main
out, crash = sys.argv[1:]
sys.addaudithook(crash_at(int(crash), out))
sys.argv = ["dialog-gen", "upgrade", out]
main()
"""


def test_a_process_that_is_killed_goes_on(tmp_path: Path) -> None:
    def upgrading(out: Path, crash: int) -> int:
        command = [sys.executable, "-c", UPGRADE, str(out), str(crash)]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": PATH}, stdout=subprocess.DEVNULL).returncode

    undisturbed, out = (Path(shutil.copytree(DATA / "v1", tmp_path / name)) for name in ("undisturbed", "killed"))
    assert upgrading(undisturbed, 0) == 0
    assert upgrading(out, 60) == CRASHED
    assert (out / "upgrade.json").exists()
    check_rows(out, "v1")
    assert upgrading(out, 0) == 0
    assert files_of(out) == files_of(undisturbed)


@pytest.mark.parametrize("part", ["data", "rejects", "shards"])
def test_a_damaged_shard_is_not_upgraded(name: str, out: Path, part: str) -> None:
    file = sorted((out / part).glob("set-001.*"))[0]
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged if part != "shards" else damaged[:40])
    before = {path: data for path, data in files_of(out).items() if "set-001" in path}
    for _ in range(2):  # a second call finds the same
        with pytest.raises(FailedCheckError, match=r"1 shard of .* is damaged and not upgraded, first set-001"):
            upgrade(str(out))
    assert {path: data for path, data in files_of(out).items() if "set-001" in path} == before
    assert not (out / "upgrade.json").exists()
    problems = verify(DatasetFolder(str(out))).problems
    assert problems
    assert all("set-001" in problem or "fewer than the last run counted" in problem for problem in problems)
    assert all(DatasetFolder(str(out)).manifest(f"set-00{number}") for number in (0, 2))


# Going on with them


def make_stored() -> Any:
    """The program that made the stored datasets."""
    spec = importlib.util.spec_from_file_location("make_stored", DATA / "make_stored.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(out: Path, dialog_gen_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """The run that made the stored dataset, by today's code."""
    maker = make_stored()
    maker.write_source()
    monkeypatch.setattr(EngineSpec, "start", lambda spec, log: ScriptedEngine(say=maker.say))
    fixed = ("--model", "shapes-llava", "--engine", "transformers", "--max-losses", "1", "--images", maker.IMAGES)
    own = ("--out", str(out), "--shard-size", "4", "--seed", "5")
    return lambda limit: dialog_gen_cli("run", *fixed, *own, "--limit", str(limit))


def test_a_run_goes_on_after_an_upgrade(name: str, out: Path, run: Callable[[int], Any], dialog_gen_cli: Cli) -> None:
    before = files_of(out)
    refused = run(12)
    assert refused.mistake.endswith(f"`dialog-gen upgrade {out}` brings it up to date.\n")
    assert files_of(out) == before
    assert dialog_gen_cli("upgrade", out).code == 0
    upgraded = files_of(out)
    assert "nothing to do" in run(10).out
    changed = {"run.json": b"", "command.json": b""}
    assert files_of(out) | changed == upgraded | changed
    assert run(12).code == 0
    rows = [without_bytes(row) for row in DatasetFolder(str(out)).rows()]
    assert [row["image_id"] for row in rows if row["image_id"] < "image-08"] == [
        row["image_id"] for row in expected(name, "data") if row["image_id"] < "image-08"
    ]
    assert [row["image_id"] for row in rows][-4:] == [f"image-{number:02}" for number in (8, 9, 10, 11)]
    assert verify(DatasetFolder(str(out))).problems == []


def test_a_run_makes_a_damaged_shard_anew(out: Path, run: Callable[[int], Any]) -> None:
    file = sorted((out / "data").glob("set-000.*"))[0]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(FailedCheckError):
        upgrade(str(out))
    assert run(10).code == 0
    assert verify(DatasetFolder(str(out))).problems == []
    assert len(rows_of(out)) == 8


def test_gates_are_applied_after_an_upgrade(name: str, out: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("gate", out, "--gates", "empty,repetition,truncation,leak,near_duplicate,length,logprob")
    assert ended.code == 0
    assert DatasetFolder(str(out)).config()["schema_version"] == 3
    if name == "v2-gated":
        check_rows(out, name)
    counts = ("images", "images_kept", "pairs", "kept", "kept_rate", "yes_share", "gates")
    then = unsealed((DATA / "v2-gated" / "gates.json").read_bytes())
    assert [json.loads((out / "gates.json").read_text())[key] for key in counts] == [then[key] for key in counts]
    gates = [row["gates"] for row in DatasetFolder(str(out)).rows()]
    assert gates == [row["gates"] for row in expected("v2-gated", "data")]
    assert verify(DatasetFolder(str(out))).problems == []


@pytest.mark.parametrize("version", [4, 0, "3"])
def test_a_version_that_is_not_known(version: object, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    out = Path(shutil.copytree(DATA / "v2", tmp_path / "out"))
    config = {**json.loads((out / "config.json").read_text()), "schema_version": version}
    (out / "config.json").write_text(json.dumps(config))
    for command in ("verify", "stats", "upgrade", "status"):
        assert "knows versions up to 3" in dialog_gen_cli(command, out).mistake
    with pytest.raises(UsageError, match="knows versions up to 3"):
        list(DatasetFolder.existing(str(out)).versions())
