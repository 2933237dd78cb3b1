"""Runs with several engines: the rows are those of an undisturbed run with one, whoever is killed."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.inputs import png, sha256, write_images
from helpers.rows import rows_of
from helpers.swarm import Swarm

from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify

IMAGES, SHARDS = 40, 10
SLOWLY: dict[str, Any] = {"DELAY_S": 0.25, "TOGETHER": 2}
FEW = ("--max-in-flight", 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("swarm") / "images", IMAGES)


@pytest.fixture(scope="module")
def undisturbed(images: Path) -> Path:
    run = Swarm(images, images.parent / "undisturbed").finish()
    assert len(run.bees) == 1
    assert run.bees[0].worker == run.process.pid
    return images.parent / "undisturbed"


def assert_equal(out: Path, undisturbed: Path) -> None:
    """The same rows in the same shards, and nothing left over."""
    assert rows_of(out) == rows_of(undisturbed)
    assert len(rows_of(out)) == IMAGES
    shards = [sorted(path.name for path in (folder / "data").iterdir()) for folder in (out, undisturbed)]
    assert shards[0] == shards[1]
    for name in (path.name for path in (undisturbed / "shards").iterdir()):
        counts = [unsealed((folder / "shards" / name).read_bytes()) for folder in (out, undisturbed)]
        assert {**counts[0], "files": []} == {**counts[1], "files": []}
    assert verify(DatasetFolder(str(out))).problems == []
    assert not (out / ".tmp").exists()


def test_two_engines(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = Swarm(images, out, *FEW, "--engines", 2, "--json", TOGETHER=2)
    code, said, err = run.end()
    assert (code, err) == (0, [])
    assert run.survivors() == []
    assert_equal(out, undisturbed)
    bees = run.bees
    assert len(bees) == 2
    assert len({run.process.pid, *(bee.worker for bee in bees)}) == 3
    report = json.loads(said)
    assert report == unsealed((out / "run.json").read_bytes())
    engines = report["run"]["engines"]
    assert sorted(engines) == ["0", "1"]
    assert sum(work["images"] for work in engines.values()) == report["run"]["images"] == IMAGES
    assert sum(work["shards"] for work in engines.values()) == report["run"]["shards"] == SHARDS
    assert sum(work["output_tokens"] for work in engines.values()) == report["run"]["output_tokens"] == 7 * IMAGES
    for number, work in engines.items():
        assert work["images"] > 0
        assert work["images_per_second"] == pytest.approx(work["images"] / work["seconds"], rel=0.05)
        assert (out / f"engine-{number}.log").read_text() == "a bee wakes up\n"
    assert not (out / "engine.log").exists()
    again = Swarm(images, out, "--engines", 2).finish()
    assert again.bees == []


@pytest.mark.slow
def test_more_engines_than_shards(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert len(Swarm(images, out, "--engines", 3, "--limit", 8, TOGETHER=2).finish().bees) == 2
    Swarm(images, out, "--engines", 2).finish()
    assert_equal(out, undisturbed)


@pytest.mark.parametrize("whose", ["worker", "engine"])
def test_killed_engines_cost_nothing(images: Path, undisturbed: Path, tmp_path: Path, whose: str) -> None:
    out = tmp_path / "out"
    run = Swarm(images, out, *FEW, "--engines", 2, "--json", **SLOWLY)
    run.wait_for_shards(1)
    for bee in run.bees:
        os.kill(getattr(bee, whose), signal.SIGKILL)
    code, said, err = run.end()
    assert code == 0
    cause = {"worker": r"ended with exit code -9", "engine": "the swarm is gone"}[whose]
    # One without work does not notice the end of its engine.
    assert 1 <= len(err) <= 2
    for line in err:
        assert line.startswith("WARNING ")
        assert cause in line
        assert "starting it again" in line
    assert run.survivors() == []
    assert_equal(out, undisturbed)
    counted = json.loads(said)["run"]
    assert (counted["images"], counted["accepted"], counted["output_tokens"]) == (IMAGES, IMAGES, 7 * IMAGES)


@pytest.mark.slow
def test_a_killed_driver_takes_all_with_it_and_another_number_goes_on(
    images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number, engines in enumerate((2, 3)):
        run = Swarm(images, out, *FEW, "--engines", engines, DELAY_S=0.25, TOGETHER=engines)
        run.wait_for_shards(3 * number + 2)
        run.process.kill()
        assert run.process.wait(20) == -signal.SIGKILL
        assert run.survivors() == []
    assert 2 <= len(rows_of(out)) < IMAGES
    last = Swarm(images, out).finish()
    assert len(last.bees) == 1
    assert_equal(out, undisturbed)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_engines_that_start_processes(images: Path, tmp_path: Path, how: signal.Signals) -> None:
    run = Swarm(images, tmp_path / "out", *FEW, "--engines", 2, FORKS=1, **SLOWLY)
    run.wait_until(lambda: len(run.bees) == 2)
    run.process.send_signal(how)
    run.end()
    assert run.survivors(10) == []


@pytest.mark.slow
def test_ctrl_c(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = Swarm(images, out, *FEW, "--engines", 2, **SLOWLY)
    run.wait_for_shards(2)
    os.killpg(run.process.pid, signal.SIGINT)
    began = time.monotonic()
    code, _, err = run.end()
    assert time.monotonic() - began < 20
    assert (code, err) == (130, ["interrupted: what is finished is kept, the same command goes on from there"])
    assert run.survivors() == []
    assert not (out / ".tmp").exists()
    assert (out / "engine-0.log").read_text() == (out / "engine-1.log").read_text() == "a bee wakes up\n"
    Swarm(images, out, "--engines", 2).finish()
    assert_equal(out, undisturbed)


def test_a_shard_that_kills_every_worker(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    out, deadly = tmp_path / "out", 21  # in the shard images-000005
    run = Swarm(images, out, "--max-in-flight", 1, "--engines", 2, DEADLY=sha256(png(deadly)), DELAY_S=0.02)
    code, said, err = run.end()
    assert (code, said) == (1, "")
    assert [line for line in err if not line.startswith("WARNING ")] == err[-1:]
    assert err[-1].startswith("error: 3 engines died ")
    assert "Finished shards are kept: run again to continue." in err[-1]
    assert f"(log: {out / 'engine-'}" in err[-1]
    assert len(run.bees) <= 5
    assert run.survivors() == []
    assert not (out / ".tmp").exists()
    done = rows_of(out)
    assert [row for row in rows_of(undisturbed) if row in done] == done
    assert verify(DatasetFolder(str(out))).problems == []
    Swarm(images, out, "--engines", 2).finish()
    assert_equal(out, undisturbed)


def test_an_engine_that_does_not_start_is_one_error(images: Path, tmp_path: Path) -> None:
    run = Swarm(images, tmp_path / "out", "--engines", 2, PIDS=tmp_path / "no" / "such")
    code, said, err = run.end()
    assert (code, said) == (2, "")
    assert len(err) == 1
    assert err[0].startswith("error: swarm did not start on honey: FileNotFoundError")


# Parts


@pytest.mark.parametrize("engines", [1, 2])
def test_parts_at_once(images: Path, undisturbed: Path, tmp_path: Path, engines: int) -> None:
    out = tmp_path / "out"
    flags = (*FEW, "--engines", engines, "--json")
    runs = [Swarm(images, out, *flags, "--part", f"{part}/2", TOGETHER=engines, DELAY_S=0.02) for part in (0, 1)]
    reports = list[dict[str, Any]]()
    for run in runs:
        code, said, err = run.end()
        assert (code, err) == (0, [])
        assert run.survivors() == []
        reports.append(json.loads(said))
    assert_equal(out, undisturbed)
    assert [report["run"]["shards"] for report in reports] == [SHARDS // 2] * 2
    assert sorted(path.name for path in out.glob("*.log")) == sorted(
        f"engine-{part}-of-2{'' if engines == 1 else f'-{number}'}.log" for part in (0, 1) for number in range(engines)
    )
    whole = unsealed((out / "run.json").read_bytes())
    assert whole["dataset"]["images"] == IMAGES
    assert {key: whole["run"][key] for key in ("images", "accepted", "shards", "output_tokens", "parts")} == {
        "images": IMAGES,
        "accepted": IMAGES,
        "shards": SHARDS,
        "output_tokens": 7 * IMAGES,
        "parts": 2,
    }
    assert whole["run"]["seconds"] == max(report["run"]["seconds"] for report in reports)
    for part, report in enumerate(reports):
        assert json.loads((out / f"run-{part}-of-2.json").read_text())["run"] == report["run"]
    command = json.loads((out / "command.json").read_text())["arguments"]
    assert not {"part", "engines"} & command.keys()


# Devices


@pytest.mark.slow
def test_each_engine_has_its_own_gpus(images: Path, undisturbed: Path, tmp_path: Path) -> None:
    """By default one engine for each, here of two GPUs."""
    out = tmp_path / "out"
    gpus = "GPU-5a1e,3,MIG-77,0,6"
    flags = (*FEW, "--tensor-parallel-size", 2)
    run = Swarm(images, out, *flags, CUDA_VISIBLE_DEVICES=gpus, NEEDS="folder", **SLOWLY).finish()
    assert sorted(bee.devices for bee in run.bees) == ["GPU-5a1e,3", "MIG-77,0"]
    assert_equal(out, undisturbed)
    assert len(Swarm(images, tmp_path / "none", CUDA_VISIBLE_DEVICES="", NEEDS="folder").finish().bees) == 1
    assert len(Swarm(images, tmp_path / "server", CUDA_VISIBLE_DEVICES=gpus).finish().bees) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--engines", "4"), "--engines 4 is too many: this machine shows 3 GPUs (0, 1, 2)"),
        (
            ("--engines", "2", "--tensor-parallel-size", "2"),
            "--engines 2 of 2 GPUs each (--tensor-parallel-size) is too",
        ),
        (("--part", "2/2"), "--part 2/2 does not exist: parts are counted from 0, the last one is 1/2"),
        (("--part", "0/0"), "--part 0/0 does not exist"),
        (("--part", "x"), "--part 'x' is no part: give I/N"),
        (("--part", "-1/2"), "--part '-1/2' is no part: give I/N"),
    ],
)
def test_mistakes(
    images: Path,
    tmp_path: Path,
    dialog_gen_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    out = tmp_path / "out"
    ended = dialog_gen_cli(
        *("run", "--model", "shapes-llava", "--engine", "transformers", "--images", images, "--out", out, *flags)
    )
    assert ended.code == 2
    assert said in ended.error
    assert ended.err.count("\n") == 1
    assert not out.exists()
