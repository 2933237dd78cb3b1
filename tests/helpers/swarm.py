"""`dialog-gen run` in processes of its own, with an engine of another package that dies when a test wants it to.

The engine answers as a function of image and seed, and has an engine process: a `sleep`. At each start it writes the
file PIDS/NUMBER, with the ids of its worker's process and of the engine process and CUDA_VISIBLE_DEVICES. It kills its
worker when it is shown the image DEADLY, and takes DELAY_S for each answer, one by one; with AWAITED, until as many
engines have been started. Its start takes until TOGETHER engines have been started. With FORKS, it starts a further
process every few milliseconds, as long as it lives.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import dialog_gen
from helpers.distributions import write_distribution

SWARM = """
import asyncio
import itertools
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from dialog_gen.engines.base import ENGINES, Answer, EngineDiedError, EngineEntry
from swarm_settings import SETTINGS

FOLDER, DEADLY, DELAY_S = Path(SETTINGS["PIDS"]), SETTINGS.get("DEADLY"), float(SETTINGS.get("DELAY_S", "0"))
TOGETHER, AWAITED = int(SETTINGS.get("TOGETHER", "1")), float(SETTINGS.get("AWAITED", "inf"))


class Bee:
    name, version, deterministic = "swarm", "1", True

    def __init__(self):
        self.turn = asyncio.Lock()
        self.process = subprocess.Popen(["sleep", "987"])
        told = f"{os.getpid()} {self.process.pid} {os.environ.get('CUDA_VISIBLE_DEVICES') or '-'}"
        (FOLDER / f"part-{os.getpid()}").write_text(told)
        for number in itertools.count():
            try:
                os.link(FOLDER / f"part-{os.getpid()}", FOLDER / str(number))
                break
            except FileExistsError:
                pass
        os.unlink(FOLDER / f"part-{os.getpid()}")
        if "FORKS" in SETTINGS:
            threading.Thread(target=self.fork, daemon=True).start()
        while len(list(FOLDER.iterdir())) < TOGETHER:
            time.sleep(0.01)

    def fork(self):
        while True:
            subprocess.Popen(["sleep", "30"])
            time.sleep(0.005)

    async def answer(self, request):
        async with self.turn:
            if DELAY_S and len(list(FOLDER.iterdir())) < AWAITED:
                await asyncio.sleep(DELAY_S)
        if request.image_sha256 == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.process.poll() is not None:
            raise EngineDiedError("the swarm is gone")
        about = f"{request.image_sha256[:8]} {request.seed}"
        text = "\\n".join(f"{i}. Q: What is at {i}? A: It is {about}." for i in (1, 2, 3))
        return Answer(text=text, finish_reason="stop", output_tokens=7, saw_image=True)

    async def close(self):
        self.process.kill()
        self.process.wait()


class SwarmEntry(EngineEntry):
    name = "swarm"
    description = "many small engines"
    needs = SETTINGS.get("NEEDS", "name")

    def resolve(self, name, *, revision=None, download=True):
        from dialog_gen.models.registry import remote_model

        return remote_model(name, revision=revision)

    def start(self, model, sampling, options):
        print("a bee wakes up")
        return Bee()


ENGINES.register("swarm")(SwarmEntry())
"""
BUCKET = """
from fsspec.implementations.local import LocalFileSystem


class Bucket(LocalFileSystem):
    # An object store: only its URL bucket:///PATH is known, and folders need not be made.
    protocol = "bucket"

    def __init__(self, **options):
        super().__init__(**{**options, "auto_mkdir": True})

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("bucket://"))
"""
PATIENCE_S = 120


class Bee(NamedTuple):
    """An engine that was started."""

    worker: int
    engine: int
    devices: str


class Swarm:
    """A run with that engine; `flags` are added to the command line, `environment` to the environment."""

    def __init__(self, images: Path, out: object, *flags: object, **environment: object) -> None:
        self.folder = images.parent
        site = self.folder / "site"
        if not site.exists():
            points = {
                "dialog_gen.engines": {"swarm": "swarm_of_a_test"},
                "fsspec.specs": {"bucket": "bucket_of_a_test:Bucket"},
            }
            write_distribution(site, "swarms", {"swarm_of_a_test": SWARM, "bucket_of_a_test": BUCKET}, points)
        self.out = out
        self.pids = self.folder / f"pids-{time.monotonic_ns()}"
        self.pids.mkdir()
        command = f"run --model honey --engine swarm --images {images} --out {out} --shard-size 4"
        # A module, because the environment of the command does not reach the machines of a cluster.
        settings = self.pids.with_name(f"settings-{self.pids.name}")
        settings.mkdir()
        values = {"PIDS": str(self.pids)} | {name: str(value) for name, value in environment.items()}
        (settings / "swarm_settings.py").write_text(f"SETTINGS = {values!r}")
        paths = os.pathsep.join([str(site), str(settings), str(Path(dialog_gen.__file__).parents[1])])
        self.process: Any = psutil.Popen(
            [sys.executable, "-m", "dialog_gen.cli.app", *command.split(), *map(str, flags)],
            env=os.environ
            | {"PYTHONPATH": paths, "COLUMNS": "1000"}
            | {name: str(value) for name, value in environment.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def bees(self) -> list[Bee]:
        """The engines that were started, in order."""
        found = sorted((int(path.name), path.read_text()) for path in self.pids.iterdir() if path.name.isdigit())
        words = [text.split() for _, text in found]
        return [Bee(int(worker), int(engine), devices) for worker, engine, devices in words]

    def wait_until(self, reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_for_shards(self, count: int) -> None:
        self.wait_until(lambda: len(list((Path(str(self.out)) / "shards").glob("*.json"))) >= count)

    def end(self) -> tuple[int, str, list[str]]:
        """Exit code, stdout, and the lines of stderr without those of level INFO."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, [line for line in err.splitlines() if not line.startswith("INFO ")]

    def finish(self) -> "Swarm":
        code, _, err = self.end()
        assert code == 0, err
        assert self.survivors() == []
        return self

    def survivors(self, seconds: float = 20) -> list[int]:
        """The processes of its engines and workers, and of their process groups, that live on for that time."""
        pids = {pid for bee in self.bees for pid in bee[:2]}
        deadline = time.monotonic() + seconds
        while left := [pid for pid in psutil.pids() if (pid in pids or _group(pid) in pids) and _lives(pid)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return left


def _group(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def _lives(pid: int) -> bool:
    try:
        # In a container whose first process reaps nothing, the dead stay as zombies.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
