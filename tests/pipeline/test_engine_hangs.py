"""Engines that hang: at their start, at a request, at their end; asleep, or so that the event loop is blocked."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers.distributions import write_distribution
from helpers.inputs import write_images

import dialog_gen
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify

SLOTH = """
import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from dialog_gen.engines.base import ENGINES, Answer, EngineEntry

WHEN, HOW = os.environ["SLOTH"].split()
POOL = ThreadPoolExecutor(1)


def block():
    while True:
        time.sleep(1000)


async def hang():
    if HOW == "asleep":
        await asyncio.sleep(1000)
    if HOW == "thread":  # which Python waits for at its end
        await asyncio.get_running_loop().run_in_executor(POOL, block)
    if HOW == "stubborn":
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass
    block()


class Sloth:
    name, version, deterministic = "sloth", "1", True
    answers = 0

    async def answer(self, request):
        self.answers += 1
        if WHEN == "first" or (WHEN == "later" and self.answers > 10):
            await hang()
        text = "\\n".join(f"{i}. Q: What is at {i}? A: It is {request.seed}." for i in (1, 2, 3))
        return Answer(text=text, finish_reason="stop", output_tokens=7, saw_image=True)

    async def close(self):
        if WHEN == "close":
            await hang()


class SlothEntry(EngineEntry):
    name = "sloth"
    description = "hangs"
    needs = "name"

    def start(self, model, sampling, options):
        print("the sloth wakes up")
        # Ends only if it is killed, as do the processes that it starts.
        code = "import subprocess, time; subprocess.Popen(['sleep', '987']); time.sleep(987)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        if WHEN == "start":
            block()
        return Sloth()


ENGINES.register("sloth")(SlothEntry())
"""
IMAGES, PATIENCE_S = 40, 120
SAID = {
    "start": "sloth did not start on polly: it was not ready after 8 s (four times --engine-timeout) and was killed",
    "first": "the engine answered none of its requests for 2 s (--engine-timeout) and was killed",
    "later": "the engine answered none of its requests for 2 s (--engine-timeout) and was killed",
    "close": "the engine did not stop within 2 s and was killed",
}


class SlothRun:
    """`dialog-gen run` with that engine, in a process of its own."""

    def __init__(self, folder: Path, when: str, how: str, *, timeout_s: float = 2) -> None:
        write_images(folder / "images", IMAGES)
        site = write_distribution(
            folder / "site", "sloths", {"sloth_of_a_test": SLOTH}, {"dialog_gen.engines": {"sloth": "sloth_of_a_test"}}
        )
        self.out = folder / "out"
        paths = os.pathsep.join([str(site), str(Path(dialog_gen.__file__).parents[1])])
        command = f"run --model polly --engine sloth --images {folder / 'images'} --out {self.out} --shard-size 4"
        options = f"--max-in-flight 1 --engine-timeout {timeout_s}"
        self.process = psutil.Popen(
            [sys.executable, "-m", "dialog_gen.cli.app", *command.split(), *options.split()],
            env=os.environ | {"PYTHONPATH": paths, "SLOTH": f"{when} {how}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until_awake(self) -> None:
        log = self.out / "engine.log"
        while not (log.exists() and b"wakes up" in log.read_bytes() and self.family(2)):
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.05)

    def family(self, count: int) -> list[psutil.Process]:
        found = self.process.children(recursive=True)
        return found if len(found) >= count else []

    def end(self) -> tuple[int, list[str]]:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert out == ""
        return self.process.returncode, [line for line in err.splitlines() if not line.startswith("INFO ")]


def assert_dead(family: list[psutil.Process]) -> None:
    assert len(family) == 2
    _, alive = psutil.wait_procs(family, 10)
    # In a container whose first process reaps nothing, the dead stay as zombies of it.
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE or p.ppid() == os.getpid()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("start", "blocked"),
        ("first", "asleep"),
        ("first", "blocked"),
        ("later", "asleep"),
        ("later", "thread"),
        ("later", "stubborn"),
        ("close", "asleep"),
        ("close", "thread"),
        ("close", "blocked"),
    ],
)
def test_an_engine_that_hangs_ends_the_run(tmp_path: Path, when: str, how: str) -> None:
    run = SlothRun(tmp_path, when, how)
    run.wait_until_awake()
    family = run.family(2)
    code, said = run.end()
    assert code == 1
    assert len(said) == 1
    assert said[0].startswith(f"error: {SAID[when]}")
    assert f"(log: {run.out / 'engine.log'})" in said[0]
    assert "Finished shards are kept: run again to continue." in said[0] or when == "start"
    assert_dead(family)
    assert not (run.out / ".tmp").exists()
    checked = verify(DatasetFolder(str(run.out)))
    assert checked.problems == []
    least, most = {"start": (0, 0), "first": (0, 0), "later": (4, 8), "close": (IMAGES, IMAGES)}[when]
    assert least <= checked.images <= most


@pytest.mark.slow
@pytest.mark.parametrize(("when", "how"), [("start", "blocked"), ("later", "asleep"), ("later", "thread")])
def test_ctrl_c_ends_a_run_whose_engine_hangs(tmp_path: Path, when: str, how: str) -> None:
    run = SlothRun(tmp_path, when, how, timeout_s=1000)
    run.wait_until_awake()
    family = run.family(2)
    while when == "later" and not (run.out / "shards" / "images-000000.json").exists():
        time.sleep(0.05)
    os.kill(run.process.pid, signal.SIGINT)
    began = time.monotonic()
    code, said = run.end()
    assert time.monotonic() - began < 60
    assert (code, said) == (130, ["interrupted: what is finished is kept, the same command goes on from there"])
    if when == "start":
        assert_dead(family)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
