"""The pass of gates over a dataset: what it writes, exactly once, and its commands."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.cli import Cli
from helpers.crashes import CRASHED, Killed, killed_at
from helpers.engine import ScriptedEngine
from helpers.inputs import write_images
from helpers.rows import files_of, make_row, marks_of, rows_of, scores_of, shard_of, sign, write_shard

from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import kept_pairs
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import DatasetWriter, open_writer
from dialog_gen.engines.start import EngineSpec
from dialog_gen.gates import apply
from dialog_gen.gates.base import GATES, Limits
from dialog_gen.gates.settings import load_gates
from dialog_gen.gates.yes_bias import YesBiasSettings

CONFIG = {"model": "m", "engine": "e"}
SPEC = "empty,length,yes_bias,near_duplicate"
ANSWERS = ("yes", "yes", "no", "A red star.", "...", "word " * 70)
NAMES = ["empty", "repetition", "truncation", "leak", "near_duplicate", "set_duplicate", "yes_bias", "language"]
NAMES += ["length", "similarity", "logprob", "self_consistency"]


def gated_row(number: int, **columns: Any) -> dict[str, Any]:
    pairs = [{"user": f"Is it {k}?", "assistant": ANSWERS[(number + k) % len(ANSWERS)]} for k in range(3)]
    return make_row(number, texts=pairs, **columns)


def shard_rows(shard: int) -> list[dict[str, Any]]:
    """Shard 2 has no accepted row."""
    if shard == 2:
        return [make_row(90, "rejected"), make_row(91, "unreadable")]
    return [gated_row(10 * shard + k) for k in range(4)] + [make_row(10 * shard + 9, "rejected")]


def write_dataset(out: Path, shards: range = range(4)) -> Path:
    with open_writer(str(out), CONFIG) as store:
        for shard in shards:
            rows = shard_rows(shard)
            write_shard(store, shard_of(f"s{shard}", len(rows)), rows)
    return out


GATE = """
import sys
from helpers.crashes import crash_at
from dialog_gen.cli.app import main
out, spec, crash = sys.argv[1:]
sys.addaudithook(crash_at(int(crash), out))
sys.argv = ["dialog-gen", "gate", out, "--gates", spec]
main()
"""
PATH = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])


def apply_gates(out: Path, spec: str = SPEC) -> dict[str, Any]:
    return apply.gate(out, spec)


def expected_of(name: str, row: dict[str, Any]) -> list[float | None]:
    gate = GATES.get(name)
    return gate(gate.settings_class(), {}).score_row(row)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "out")


def lenient(tmp_path: Path, text: str) -> str:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    return str(path)


BIAS = "[yes_bias]\nmax = 0.5\nleast_answers = 1\n"


def test_columns_and_marks_are_written_and_nothing_else_changes(dataset: Path, tmp_path: Path) -> None:
    before = rows_of(dataset, volatile=True)
    rejects = rows_of(dataset, "rejects", volatile=True)
    spec = lenient(tmp_path, f"[empty]\n[length]\nmin = 1\nmax = 60\n{BIAS}")
    report = apply_gates(dataset, spec)
    after = rows_of(dataset, volatile=True)
    assert [{**row, "gates": None} for row in after] == before
    assert rows_of(dataset, "rejects", volatile=True) == rejects
    limits = load_gates(spec)
    for row in after:
        assert scores_of(row, "length") == expected_of("length", row)
        assert scores_of(row, "empty") == pytest.approx(expected_of("empty", row))
        for scores, marks in zip(row["gates"], marks_of(row) or (), strict=True):
            assert [score["gate"] for score in scores] == list(limits)
            assert marks == [s["gate"] for s in scores if limits[s["gate"]].is_violated(s["score"])]
    answers = [pair["assistant"].strip() for row in after for pair in kept_pairs(row)]
    assert sorted(set(answers)) == ["A red star.", "no", "yes"]
    assert answers.count("yes") == answers.count("no") == 8
    assert verify(DatasetFolder(str(dataset))).problems == []

    assert unsealed((dataset / "gates.json").read_bytes()) == report
    assert (report["images"], report["pairs"], report["kept"]) == (12, 36, len(answers))
    assert report["images_kept"] == sum(bool(kept_pairs(row)) for row in after)
    assert report["yes_share"] == 0.6
    assert report["gates"]["length"] == {"scored": 36, "marked": 9, "marked_alone": 4, "rate": 0.25}
    assert report["gates"]["yes_bias"]["scored"] == 12
    assert report["settings"]["yes_bias"]["max"] == 0.5
    assert set(report["versions"]) == {"dialog-gen"}


def test_a_second_pass_writes_nothing(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_gates(dataset)
    before = files_of(dataset)
    monkeypatch.setattr(DatasetWriter, "rewrite", lambda *_, **__: pytest.fail("a shard was done again"))
    apply_gates(dataset)
    assert files_of(dataset) == before


def test_other_gates_replace_what_was_said_before(dataset: Path, tmp_path: Path) -> None:
    apply_gates(dataset, "length")
    assert all(scores_of(row, "length") and not scores_of(row, "leak") for row in rows_of(dataset))
    assert any(mark for row in rows_of(dataset) for mark in marks_of(row) or ())
    report = apply_gates(dataset, lenient(tmp_path, "[leak]\nmax = inf\n"))
    assert list(report["gates"]) == ["leak"]
    assert report["settings"]["leak"]["max"] is None
    assert report["kept_rate"] == 1
    for row in rows_of(dataset):
        assert scores_of(row, "leak") is not None
        assert scores_of(row, "length") is None
        assert marks_of(row) == [[], [], []]


def test_shards_that_come_later_end_as_if_they_had_been_there(tmp_path: Path) -> None:
    whole, grown = write_dataset(tmp_path / "whole"), write_dataset(tmp_path / "grown", range(2))
    spec = lenient(tmp_path, f"[length]\n{BIAS}")
    apply_gates(grown, spec)
    write_dataset(grown, range(2, 4))
    assert apply_gates(grown, spec) == apply_gates(whole, spec)
    assert rows_of(grown) == rows_of(whole)
    assert verify(DatasetFolder(str(grown))).problems == []


def test_only_shards_that_would_change_are_done_again(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "out", range(2))
    apply_gates(out, "length")
    before = files_of(out)
    write_dataset(out, range(2, 4))
    apply_gates(out, "length")
    after = files_of(out)
    assert {name: after[name] for name in before if name.startswith(("data/s", "shards/s"))} == {
        name: data for name, data in before.items() if name.startswith(("data/s", "shards/s"))
    }
    assert all(scores_of(row, "length") for row in rows_of(out))


def test_progress_goes_through_a_callback_and_nothing_is_printed(
    dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []
    apply.gate(dataset, {"length": {"max": 3}, "yes_bias": {}}, on_progress=lambda *call: calls.append(call))
    for stage in ("quality gates: reading all pairs", "quality gates"):
        counts = [done for name, done, total, unit in calls if (name, total, unit) == (stage, 12, "images")]
        assert counts == sorted(counts)
        assert counts[-1] == 12
    assert {call[0] for call in calls} == {"quality gates: reading all pairs", "quality gates"}
    assert capfd.readouterr() == ("", "")
    assert json.loads((dataset / "gates.json").read_text())["settings"]["length"] == {"min": 1, "max": 3}


def test_a_pass_that_is_killed_anywhere_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = write_dataset(tmp_path / "undisturbed", range(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        steps = killed_at(patch, float("inf"), before=False)
        apply_gates(undisturbed)
    assert steps() >= 8
    for step in range(1, steps()):
        for before in (True, False):
            out = write_dataset(tmp_path / f"{step}-{before}", range(1, 4))
            with pytest.MonkeyPatch.context() as patch:
                killed_at(patch, step, before=before)
                with pytest.raises(Killed):
                    apply_gates(out)
            apply_gates(out)
            assert files_of(out) == files_of(undisturbed), (step, before)


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "undisturbed", tmp_path / "killed"]
    for out in folders:
        with open_writer(str(out), CONFIG) as store:
            for shard in range(20):
                rows = [gated_row(100 * shard + k) for k in range(40)]
                write_shard(store, shard_of(f"s{shard:02d}", len(rows)), rows)

    def gate(out: Path, crash: int) -> int:
        command = [sys.executable, "-c", GATE, str(out), SPEC, str(crash)]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": PATH}, stdout=subprocess.DEVNULL).returncode

    assert gate(folders[0], 0) == 0
    for crash in (110, 160):
        assert gate(folders[1], crash) == CRASHED
        assert 0 < len(list((folders[1] / "data").glob("*.v2.parquet"))) < 20
    assert gate(folders[1], 0) == 0
    assert files_of(folders[1]) == files_of(folders[0])


def test_every_gate_has_settings_and_a_meaning() -> None:
    assert list(load_gates("all")) == NAMES
    assert set(NAMES) - set(load_gates("text")) == {"similarity", "self_consistency"}
    assert list(load_gates("leak, length")) == ["leak", "length"]
    assert load_gates("similarity,text,length") == load_gates(",".join(set(NAMES) - {"self_consistency"}))
    words = load_gates({"yes_bias": {"yes": ["Yes ", "YEAH"]}})["yes_bias"]
    assert isinstance(words, YesBiasSettings)
    assert words.yes == ("yes", "yeah")


@pytest.mark.parametrize(
    ("limits", "marked"),
    [
        (Limits(), []),
        (Limits(min=0.6), [0.1]),
        (Limits(max=0.6), [2.0]),
        (Limits(min=0.6, max=0.6), [0.1, 2.0]),
        (Limits(min=float("-inf"), max=float("inf")), []),
    ],
)
def test_limits(limits: Limits, marked: list[float]) -> None:
    stored = 0.6000000238418579  # 0.6 as it comes back from a column of float32
    assert [score for score in (0.1, 0.6, stored, 2.0, None) if limits.is_violated(score)] == marked


def test_the_command(dataset: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("gate", str(dataset), "--gates", "length,yes_bias")
    assert (ended.code, ended.err) == (0, "")
    header, bias_line, length_line, why, last = ended.out.splitlines()
    assert why.startswith("yes_bias scored no pair: ")
    assert header.split() == ["gate", "limits", "scored", "marked", "only", "by", "it", "share"]
    assert length_line.split() == ["length", "1", "to", "60", "36", "9", "9", "25.0%"]
    assert bias_line.split() == ["yes_bias", "at", "most", "0.6", "0", "0", "0", "0.0%"]
    assert last == f"{dataset}: 27 of 36 pairs kept, on 12 of 12 images; of the yes/no answers 60.0% are yes"
    as_json = dialog_gen_cli("gate", str(dataset), "--gates", "length,yes_bias", "--json")
    assert json.loads(as_json.out) == unsealed((dataset / "gates.json").read_bytes())


def test_a_dataset_without_rows(tmp_path: Path, dialog_gen_cli: Cli) -> None:
    with open_writer(str(tmp_path), CONFIG):
        pass
    ended = dialog_gen_cli("gate", str(tmp_path))
    assert ended.code == 0
    assert ended.out.endswith("0 of 0 pairs kept, on 0 of 0 images\n")


def test_the_list_of_gates(dialog_gen_cli: Cli) -> None:
    lines = dialog_gen_cli("gates").out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == NAMES
    listed = json.loads(dialog_gen_cli("gates", "--json").out)
    assert {row["name"]: row["settings"]["min"] for row in listed}["length"] == 1
    page = (Path(__file__).parents[2] / "docs/gates.md").read_text(encoding="utf-8")
    table = "".join(f"| `{row['name']}` | {row['description']} | {row['limits']} |\n" for row in listed)
    assert f"| Gate | Score of a pair | Limits |\n| --- | --- | --- |\n{table}\n" in page


MISTAKES = {
    "unknown": ("lenght", ["--gates lenght", "unknown gate 'lenght'", "did you mean 'length'?", ".toml file"]),
    "one of several": ("leak,lenght", ["unknown gate 'lenght'"]),
    "none": ("", ["unknown gate ''", "Known: all,"]),
    "no file": ("nowhere.toml", ["gates file nowhere.toml", "No such file"]),
    "no gates": ("empty.toml", ["gates file empty.toml", "no gate is named", "self_consistency"]),
    "a wrong table": ("table.toml", ["lenght: unknown key; did you mean 'length'?"]),
    "a wrong key": ("key.toml", ["length.maximum: unknown key; did you mean 'max'?"]),
    "crossed limits": ("crossed.toml", ["min = 3.0 lies above max = 2.0"]),
    "a limit that is none": ("nan.toml", ["length.max: a limit is a number, got nan"]),
    "a language": ("language.toml", ["expected = 'eng'", "did you mean", "Known: "]),
}
FILES = {
    "empty.toml": "",
    "table.toml": "[lenght]",
    "key.toml": "[length]\nmaximum = 3",
    "crossed.toml": "[length]\nmin = 3\nmax = 2",
    "nan.toml": "[length]\nmax = nan",
    "language.toml": '[language]\nexpected = "eng"',
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", 3)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", ["gate", "run"])
def test_a_mistake_is_told_in_a_line_before_anything_is_done(
    command: str, mistake: str, workplace: Path, dialog_gen_cli: Cli
) -> None:
    spec, told = MISTAKES[mistake]
    if command == "gate":
        arguments = ["gate", str(write_dataset(workplace / "out", range(1)))]
    else:
        arguments = ["run", "--model", "shapes-llava", "--images", "images", "--out", "new"]
    ended = dialog_gen_cli(*arguments, "--gates", spec)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert [words for words in told if words not in ended.err] == []
    assert not (workplace / "new").exists()
    assert not (workplace / "out" / "gates.json").exists()


def test_a_file_of_another_version(dataset: Path, dialog_gen_cli: Cli) -> None:
    file = dataset / "data" / "s0.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["caption", "attempts"]), file)
    sign(dataset, "s0")
    before = files_of(dataset)
    ended = dialog_gen_cli("gate", str(dataset), "--gates", "length")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: {dataset}/data/s0.parquet was written by another version of dialog-gen: its columns differ from the "
        "record in caption, attempts.\n"
    )
    assert files_of(dataset) == before


def test_a_folder_that_is_no_dataset(workplace: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("gate", "images")
    assert (ended.code, ended.out) == (2, "")
    assert "images is no dataset folder" in ended.err


def test_a_run_with_gates_ends_as_a_run_and_then_gates(
    workplace: Path, dialog_gen_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineSpec, "start", lambda spec, log: ScriptedEngine())
    run = ("run", "--model", "shapes-llava", "--images", "images", "--shard-size", "2", "--json", "--out")
    report = json.loads(dialog_gen_cli(*run, "one", "--gates", "length,leak").out)
    dialog_gen_cli(*run, "two")
    dialog_gen_cli("gate", "two", "--gates", "length,leak")
    one, two = workplace / "one", workplace / "two"
    assert rows_of(one) == rows_of(two)
    assert {scores_of(row, "length") is not None for row in rows_of(one)} == {True}
    assert report["gates"] == unsealed((one / "gates.json").read_bytes())
    assert (one / "gates.json").read_bytes() == (two / "gates.json").read_bytes()
    said = dialog_gen_cli(*[word for word in run if word != "--json"], "one", "--gates", "length,leak").out
    assert "nothing to do" in said
    assert "9 of 9 pairs kept, on 3 of 3 images" in said
    assert verify(DatasetFolder(str(one))).problems == []
