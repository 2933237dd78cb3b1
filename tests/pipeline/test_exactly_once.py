"""`dialog-gen run` in processes of its own, killed and interrupted; and the truth of what it says."""

import json
import math
import os
import random
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from helpers.forks import ForkedCommand
from helpers.rows import rows_of

from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import VOLATILE_COLUMNS
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import Scene, draw_scene
from dialog_gen.shapes.truth import measure_truth

pytestmark = pytest.mark.slow

IMAGES, IMAGES_A_TAR, SHARD_SIZE = 200, 50, 16
SHARDS = 16  # four a tar: of 16, 16, 16 and 2 images
KILLS = 5
# An engine's start is most of each run, and vLLM's takes several times as long as that of transformers.
WAYS = {"sampled": ("--engine", "vllm"), "greedy": ("--engine", "transformers", "--temperature", "0")}
PATIENCE_S = 900


def scene(index: int) -> Scene:
    return draw_scene("test", 21, index)


def image_id(index: int) -> str:
    return f"{index // IMAGES_A_TAR:05d}/{index:09d}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Webdataset tars of scenes that no generator was trained on."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        tar_name, _, key = image_id(index).partition("/")
        data = render_png(scene(index))
        with tarfile.open(folder / f"{tar_name}.tar", "a") as tar:
            member = tarfile.TarInfo(f"{key}.png")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    return folder


@dataclass
class Run:
    """`dialog-gen run` in a session of its own."""

    images: Path
    out: Path
    arguments: tuple[str, ...]
    anew: bool = False
    """Whether its workers and engines are new Pythons, as for users, and not forks."""
    began: float = field(init=False)

    def __post_init__(self) -> None:
        settings = ("--shard-size", str(SHARD_SIZE), "--max-in-flight", "8", *self.arguments)
        self.said = self.out.with_name(f"{self.out.name}.stderr")
        with self.said.open("wb") as stderr:
            self.process = dialog_gen_process(
                *("run", "--model", "shapes-llava", "--images", str(self.images), "--out", str(self.out), *settings),
                stderr=stderr,
                anew=self.anew,
            )
        self.began = time.monotonic()

    @property
    def finished_shards(self) -> int:
        return len(list((self.out / "shards").glob("*.json")))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def engine_said(self, words: str) -> bool:
        log = self.out / "engine.log"
        return log.exists() and words in log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            assert self.process.poll() is None, f"ended before: {self.said.read_text()}"
            assert self.seconds < PATIENCE_S
            time.sleep(0.005)

    def wait_for_shards(self, count: int) -> None:
        self.wait_until(lambda: self.finished_shards >= count)

    def wait_for_the_moment(self, seconds: float) -> None:
        # It must not come to its end on a machine that has become faster.
        self.wait_until(lambda: self.seconds > seconds or self.finished_shards > SHARDS - 4)

    def finish(self) -> None:
        code = self.process.wait(PATIENCE_S)
        assert code == 0, self.said.read_text()
        assert survivors(self.process.pid, []) == []

    def end_by(self, number: signal.Signals, *, group: bool = True) -> tuple[int, float]:
        """Exit code, and seconds from the signal to the end; nothing that the run started may live on."""
        family = self.process.children(recursive=True)
        (os.killpg if group else os.kill)(self.process.pid, number)
        sent = time.monotonic()
        code = self.process.wait(PATIENCE_S)
        took = time.monotonic() - sent
        assert survivors(self.process.pid, family) == []
        return code, took


def dialog_gen_process(*arguments: str, stderr: Any = DEVNULL, anew: bool = False) -> ForkedCommand:
    return ForkedCommand(["dialog-gen", *arguments], stderr=stderr, start_new_session=True, anew=anew)


def survivors(session: int, family: list[psutil.Process]) -> list[psutil.Process]:
    """Processes of the family or the session that are there half a minute later."""

    def lives_on(process: psutil.Process) -> bool:
        # In a container whose first process reaps nothing, the dead stay as zombies.
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            belongs = process in family or os.getsid(process.pid) == session
            return belongs and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    deadline = time.monotonic() + 30
    while left := [process for process in psutil.process_iter() if lives_on(process)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return []


@dataclass
class Undisturbed:
    out: Path
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    """A way of decoding -> a run to its end."""
    runs: dict[str, Undisturbed] = {}

    def get(way: str) -> Undisturbed:
        if way not in runs:
            run = Run(images, tmp_path_factory.mktemp(way) / "out", WAYS[way])
            run.finish()
            runs[way] = Undisturbed(run.out, run.seconds)
        return runs[way]

    return get


def rows_of_shard(out: Path, shard: str) -> list[dict[str, Any]]:
    files = [out / part / f"{shard}.parquet" for part in ("data", "rejects")]
    rows = [row for file in files if file.exists() for row in pq.read_table(file).to_pylist()]
    return [{key: value for key, value in row.items() if key not in VOLATILE_COLUMNS} for row in rows]


def assert_finished_shards_are_whole(out: Path, reference: Path) -> None:
    shards = [manifest.stem for manifest in (out / "shards").glob("*.json")]
    for shard in shards:
        assert rows_of_shard(out, shard) == rows_of_shard(reference, shard) != []


def assert_is_whole(out: Path, reference: Path) -> None:
    for part in ("data", "rejects"):
        assert rows_of(out, part) == rows_of(reference, part)
    assert len(rows_of(out)) + len(rows_of(out, "rejects")) == IMAGES
    assert counts_of(out) == counts_of(reference)
    assert len(counts_of(out)) == SHARDS
    assert dialog_gen_process("verify", str(out)).wait(PATIENCE_S) == 0
    # Nothing is left over from the killed runs.
    assert {file.relative_to(out) for file in out.rglob("*")} == {
        f.relative_to(reference) for f in reference.rglob("*")
    }


def counts_of(out: Path) -> list[dict[str, Any]]:
    manifests = [json.loads(file.read_bytes()) for file in sorted((out / "shards").iterdir())]
    return [{key: value for key, value in manifest.items() if key not in ("files", "sha256")} for manifest in manifests]


def test_killed_five_times_then_run_to_the_end(
    images: Path, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    reference = undisturbed("greedy")
    out, rng = tmp_path / "out", random.Random("greedy")
    in_the_middle = 0
    for kill in range(KILLS):
        run = Run(images, out, WAYS["greedy"])
        before = run.finished_shards
        if kill % 2:
            run.wait_for_shards(before + rng.randint(1, 2))
        else:
            run.wait_for_the_moment(rng.uniform(0, 0.95 * reference.seconds))
        code, _ = run.end_by(signal.SIGKILL)
        assert code == -signal.SIGKILL
        in_the_middle += 0 < run.finished_shards < SHARDS
        print(f"killed after {run.seconds:.1f} s, {before} -> {run.finished_shards} shards")
    assert in_the_middle >= 2
    Run(images, out, WAYS["greedy"]).finish()
    assert_is_whole(out, reference.out)


def test_ctrl_c(images: Path, undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    run = Run(images, tmp_path / "out", WAYS["greedy"])
    run.wait_for_shards(1)
    assert_ends_by_ctrl_c(run)
    assert_finished_shards_are_whole(run.out, undisturbed("greedy").out)


def test_vllm_ended_in_every_way_then_run_to_the_end(
    images: Path, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Its start takes most of a run: so all ends are of one dataset, one after the other."""
    reference = undisturbed("sampled")
    out = tmp_path / "out"

    def started(*flags: str, anew: bool = False) -> Run:
        run = Run(images, out, (*WAYS["sampled"], *flags), anew)
        print(f"{run.finished_shards} shards")
        return run

    # While vLLM's own processes start, its waiting for them swallows a Ctrl-C.
    run = started()
    run.wait_until(lambda: run.engine_said("Initializing a V1 LLM engine"))
    assert_ends_by_ctrl_c(run)

    # To that one process alone, as from a scheduler or the kernel out of memory: its engine ends with it.
    run = started(anew=True)
    run.wait_for_shards(run.finished_shards + 1)
    assert any(process.name().startswith("VLLM::") for process in run.process.children())
    code, took = run.end_by(signal.SIGKILL, group=False)
    assert code == -signal.SIGKILL
    assert took < 120  # not a matter of speed: what is left over never ends
    assert run.finished_shards < SHARDS
    assert_finished_shards_are_whole(out, reference.out)

    run = started()
    run.wait_for_shards(run.finished_shards + 1)
    assert_ends_by_ctrl_c(run)

    # Of two engines, one dies with its worker, and later the other alone; both are started again. Then the driver.
    run = started("--engines", "2")
    run.wait_for_shards(run.finished_shards + 2)
    workers = [process for process in run.process.children() if process.children()]
    assert len(workers) == 2
    family = run.process.children(recursive=True)
    workers[0].kill()
    run.wait_for_shards(run.finished_shards + 1)
    engines = [child for child in workers[1].children() if child.name().startswith("VLLM::")]
    assert len(engines) == 1
    engines[0].kill()
    # Two further starts of vLLM, at the same time: they take long on a busy machine.
    run.began = time.monotonic()
    run.wait_for_shards(run.finished_shards + 2)
    assert len([line for line in run.said.read_text().splitlines() if "starting it again" in line]) == 2
    code, took = run.end_by(signal.SIGKILL, group=False)
    assert code == -signal.SIGKILL
    assert took < 120
    assert survivors(run.process.pid, family) == []
    assert run.finished_shards < SHARDS

    run = started()
    run.finish()
    for log in out.glob("engine-*.log"):
        log.unlink()
    assert_is_whole(out, reference.out)


def assert_ends_by_ctrl_c(run: Run) -> None:
    """A terminal sends it to the whole group."""
    code, took = run.end_by(signal.SIGINT)
    assert code == 130
    assert took < 120  # not a matter of speed: what is left over never ends
    said = run.said.read_text()
    assert said.endswith("interrupted: what is finished is kept, the same command goes on from there\n")
    assert [line for line in said.splitlines() if not line.startswith(("INFO ", "interrupted: "))] == []
    assert not (run.out / ".tmp").exists()
    assert run.finished_shards < SHARDS


def test_the_truth_rate_of_unseen_images(undisturbed: Callable[[str], Undisturbed]) -> None:
    """At the protocol's own sampling. What would be this bad once in a thousand times at 90 % is no longer 90 %."""
    out = undisturbed("sampled").out
    truth = measure_truth(DatasetFolder.existing(str(out)), {image_id(i): scene(i) for i in range(IMAGES)})
    assert truth.images >= 0.98 * IMAGES  # else the rate would be of a selection
    pairs, true = truth.asked.total(), truth.true.total()
    assert pairs == 3 * truth.images
    print(f"truth rate {truth.rate:.1%} of {pairs} pairs")
    assert at_most(true, pairs, 9, 10) > 0.001


def test_self_consistency_keeps_what_is_true(undisturbed: Callable[[str], Undisturbed], tmp_path: Path) -> None:
    """With the gate's own settings: 4 points of truth at least, for a quarter of the pairs at most."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed("sampled").out, out)
    gating = dialog_gen_process("gate", str(out), "--gates", "self_consistency")
    assert gating.wait(PATIENCE_S) == 0
    truth = measure_truth(DatasetFolder.existing(str(out)), {image_id(i): scene(i) for i in range(IMAGES)})
    gate = truth.gates["self_consistency"]
    print(
        f"truth rate {truth.rate:.1%} -> {gate.kept_rate:.1%} of {gate.kept:.1%} kept; precision {gate.precision:.1%}"
    )
    assert gate.kept >= 0.75
    assert gate.kept_rate >= truth.rate + 0.04
    assert dialog_gen_process("verify", str(out)).wait(PATIENCE_S) == 0
    # The dialogues themselves are as they were.
    assert [row["texts"] for row in rows_of(out)] == [row["texts"] for row in rows_of(undisturbed("sampled").out)]


def at_most(successes: int, trials: int, numerator: int, denominator: int) -> float:
    """Probability of at most so many successes, each as likely as numerator / denominator."""
    failing = denominator - numerator
    ways = sum(math.comb(trials, k) * numerator**k * failing ** (trials - k) for k in range(successes + 1))
    return ways / denominator**trials
