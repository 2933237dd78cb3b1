"""Runs with several workers for one engine, whose core is a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.distributions import write_distribution
from helpers.inputs import write_images
from helpers.instant import INSTANT, INSTANT_POINTS
from helpers.rows import rows_of

import dialog_gen

IMAGES, SHARDS = 40, 10
PATIENCE_S = 120


class Run:
    """`dialog-gen run` in a process of its own, with the engine of `helpers.instant`."""

    def __init__(self, folder: Path, out: str, *flags: object, delay_s: float = 0) -> None:
        self.out = folder / out
        command = f"run --model any --engine instant --images images --out {out} --shard-size 4 --json"
        paths = os.pathsep.join([str(folder / "site"), str(Path(dialog_gen.__file__).parents[1])])
        self.process: Any = psutil.Popen(
            [sys.executable, "-m", "dialog_gen.cli.app", *command.split(), *map(str, flags)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "DELAY_S": str(delay_s), "COLUMNS": "1000"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_shards(self, count: int) -> None:
        self.wait_until(lambda: len(list((self.out / "shards").glob("*.json"))) >= count)

    def wait_until(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def children(self, function: str) -> list[psutil.Process]:
        """Its living processes that run a function: "work", "host"."""
        found = list[psutil.Process]()
        for process in self.process.children():
            with suppress(psutil.Error):  # it is dead, but not waited for yet
                found += [process] if process.cmdline()[-1:] == [function] else []
        return found

    def end(self) -> tuple[int, dict[str, Any], list[str]]:
        """Exit code, summary, and the lines of stderr without those of level INFO."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        lines = [line for line in err.splitlines() if not line.startswith("INFO ")]
        return self.process.returncode, json.loads(out) if out else {}, lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("frontends")
    write_distribution(folder / "site", "instant", INSTANT, INSTANT_POINTS)
    write_images(folder / "images", IMAGES)
    code, summary, _ = Run(folder, "undisturbed").end()
    assert (code, summary["load"]["workers"]) == (0, 1)
    yield folder
    # No core outlives its run. One that was killed, as on a slow machine, has left its file.
    deadline = time.monotonic() + PATIENCE_S
    while left := [path for path in folder.glob("core-*") if runs_core(int(path.name.removeprefix("core-")))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def runs_core(pid: int) -> bool:
    try:
        return psutil.Process(pid).cmdline()[-1:] == ["host"]
    except psutil.Error:
        return False


def assert_equal(folder: Path, out: str) -> None:
    assert rows_of(folder / out) == rows_of(folder / "undisturbed")
    assert len(rows_of(folder / out)) == IMAGES
    assert not (folder / out / ".tmp").exists()


def test_two_workers_of_one_engine(folder: Path) -> None:
    code, summary, err = Run(folder, "two", "--frontends", 2, "--max-in-flight", 2, delay_s=0.05).end()
    assert (code, err) == (0, [])
    assert_equal(folder, "two")
    assert list(summary["run"]["engines"]) == ["0"]
    load = summary["load"]
    # On a busy machine one may have done all before the other has started.
    assert load["workers"] in (1, 2)
    assert len(load["engines"]) == 1
    assert load["images"] == IMAGES
    assert summary["run"]["output_tokens"] == 30 * IMAGES


def test_two_engines_with_two_workers_each(folder: Path) -> None:
    flags = ("--frontends", 2, "--engines", 2, "--max-in-flight", 2)
    code, summary, err = Run(folder, "four", *flags, delay_s=0.1).end()
    assert (code, err) == (0, [])
    assert_equal(folder, "four")
    assert set(summary["run"]["engines"]) <= {"0", "1"}
    assert sum(engine["images"] for engine in summary["load"]["engines"]) == IMAGES


def test_a_killed_worker_leaves_the_core_to_the_others(folder: Path) -> None:
    run = Run(folder, "worker", "--frontends", 2, "--max-in-flight", 2, delay_s=0.15)
    run.wait_for_shards(2)
    (core,) = run.children("host")
    run.children("work")[1].kill()
    run.wait_for_shards(6)
    assert run.children("host") == [core]
    code, summary, err = run.end()
    assert (code, len(err)) == (0, 1), err
    assert "ended with exit code -9" in err[0]
    assert_equal(folder, "worker")
    assert summary["run"]["images"] == IMAGES


def test_a_killed_core_is_started_again_and_counts_once(folder: Path) -> None:
    """It takes three workers along, which would otherwise be too many deaths in a row."""
    run = Run(folder, "core", "--frontends", 3, "--max-in-flight", 3, delay_s=0.3)
    run.wait_for_shards(1)
    (core,) = run.children("host")
    core.kill()
    for path in folder.glob(f"core-{core.pid}"):
        path.unlink()  # so that its clients know
    code, _, err = run.end()
    assert code == 0, err
    assert all(re.search("the core has ended|exit code|ended, or had", line) for line in err)
    assert_equal(folder, "core")


def test_a_killed_driver_takes_all_with_it(folder: Path) -> None:
    run = Run(folder, "driver", "--frontends", 2, "--max-in-flight", 2, delay_s=0.15)
    run.wait_for_shards(2)
    processes = run.process.children(recursive=True)
    assert len(processes) == 3
    run.process.kill()
    run.process.communicate()
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert Run(folder, "driver", "--frontends", 2).end()[0] == 0
    assert_equal(folder, "driver")


def test_ctrl_c(folder: Path) -> None:
    run = Run(folder, "ctrl-c", "--frontends", 2, "--max-in-flight", 2, delay_s=0.15)
    run.wait_for_shards(2)
    run.process.send_signal(signal.SIGINT)
    code, _, err = run.end()
    assert (code, err) == (130, ["interrupted: what is finished is kept, the same command goes on from there"])
    assert Run(folder, "ctrl-c").end()[0] == 0
    assert_equal(folder, "ctrl-c")


def test_mistakes(folder: Path) -> None:
    code, _, err = Run(folder, "no", "--frontends", 0).end()
    assert code == 2
    assert "--frontends" in " ".join(err)
    run = Run(folder, "no", "--frontends", 2, "--engine", "transformers", "--model", "shapes-llava")
    code, _, err = run.end()
    assert (code, err) == (
        2,
        ["error: --frontends 2: the engine transformers cannot be fed by several processes; leave it out."],
    )
    assert not (folder / "no").exists()
