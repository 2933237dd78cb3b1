"""An engine and an executor of another package, each in one file, used from the command line; and broken ones."""

import json
import subprocess
from pathlib import Path

import pytest
from helpers.distributions import python_with, write_distribution
from helpers.inputs import png, sha256, write_images
from helpers.rows import rows_of

PARROT = """
import asyncio

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import ENGINES, Answer, EngineEntry


class Parrot:
    name, version, deterministic = "parrot", "0.1", True

    def __init__(self, model, endpoint):
        self._model, self._endpoint = model, endpoint

    async def answer(self, request):
        await asyncio.sleep(0)
        (message,) = request.messages
        assert message.role == "user"
        about = f"{request.image_sha256[:8]} {request.seed}"
        text = "\\n".join(
            f"{i}. Q: What is at {i}? A: {self._model} at {self._endpoint} says {about}" for i in (1, 2, 3)
        )
        return Answer(text=text, finish_reason="stop", output_tokens=7, saw_image=True)

    async def close(self):
        pass


class ParrotEntry(EngineEntry):
    name = "parrot"
    description = "repeats what it is asked"
    needs = "name"

    def check(self, model, options):
        super().check(model, options)
        if options.endpoint is None:
            raise UsageError("--engine parrot needs an --endpoint.")

    def start(self, model, sampling, options):
        print("the parrot wakes up")
        return Parrot(model.name, options.endpoint)


ENGINES.register("parrot")(ParrotEntry())
"""
PROCESSES = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from dialog_gen.executors.base import EXECUTORS, Executor


def work(job, shard, events):
    job.run(iter([shard]), events.put)


class Processes(Executor):
    description = "a process a shard"

    def run(self, job, shards, report, options):
        spawn = get_context("spawn")
        with spawn.Manager() as manager, ProcessPoolExecutor(2, mp_context=spawn) as pool:
            events = manager.Queue()
            for done in [pool.submit(work, job, shard, events) for shard in shards]:
                done.result()
            while not events.empty():
                report(events.get())


EXECUTORS.register("processes")(Processes())
"""
MODULES = {"parrot_of_a_test": PARROT, "processes_of_a_test": PROCESSES}
POINTS = {
    "dialog_gen.engines": {"parrot": "parrot_of_a_test", "dodo": "no_such_module_anywhere"},
    "dialog_gen.executors": {"processes": "processes_of_a_test", "dodo": "no_such_module_anywhere"},
}
IMAGES = 5
RUN = ("run", "--model", "polly", "--images", "images", "--shard-size", "2", "--out")
PARROT_FLAGS = ("--engine", "parrot", "--endpoint", "http://cage")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", IMAGES)
    return write_distribution(tmp_path / "site", "birds", MODULES, POINTS)


def dialog_gen_in(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python_with(site, "-m", "dialog_gen.cli.app", *arguments, cwd=site.parent)


def error_of(ended: subprocess.CompletedProcess[str]) -> str:
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr
    return ended.stderr


def test_a_run_with_both(site: Path) -> None:
    ended = dialog_gen_in(site, *RUN, "local", *PARROT_FLAGS, "--json")
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)  # what the engine prints goes to its log
    assert summary["engine"] == {"name": "parrot", "version": "0.1", "deterministic": True}
    assert (summary["run"]["accepted"], summary["run"]["output_tokens"]) == (IMAGES, 7 * IMAGES)
    rows = rows_of(site.parent / "local")
    assert len(rows) == IMAGES
    for number, row in enumerate(rows):
        digest = sha256(png(number))
        answer = f"polly at http://cage says {digest[:8]} {row['sampling']['seed']}"
        assert row["texts"] == [{"user": f"What is at {i}?", "assistant": answer} for i in (1, 2, 3)]
        assert (row["engine"], row["model"], row["image_sha256"]) == ("parrot", "polly", digest)

    ended = dialog_gen_in(site, *RUN, "processes", *PARROT_FLAGS, "--executor", "processes", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["run"]["shards"] == 3
    assert rows_of(site.parent / "processes") == rows


def test_a_dry_run_shows_the_conversation_that_a_server_renders(site: Path) -> None:
    ended = dialog_gen_in(site, *RUN, "out", *PARROT_FLAGS, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "engine: parrot" in ended.stdout
    assert "turn 1: 'user: " in ended.stdout
    assert not (site.parent / "out").exists()


def test_the_help_names_them(site: Path) -> None:
    words = " ".join(dialog_gen_in(site, "run", "--help").stdout.split())
    assert "transformers, vllm, dodo or parrot." in words
    assert "Where shards are worked on: local, ray, dodo or processes." in words


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--engine", "parot"), ["--engine parot: unknown engine; did you mean 'parrot'?", "transformers, vllm"]),
        (("--engine", "dodo"), ["engine 'dodo' of the package birds cannot be imported", "no_such", "parrot"]),
        (("--executor", "lokal"), ["--executor lokal: unknown executor; did you mean 'local'?", "processes"]),
        (("--executor", "dodo"), ["executor 'dodo' of the package birds cannot be imported", "no_such", "local"]),
        (("--engine", "parrot"), ["--engine parrot needs an --endpoint"]),
        (
            ("--model", "shapes-llava", "--engine", "transformers", "--endpoint", "http://cage"),
            ["--endpoint http://cage: the engine transformers runs the model itself"],
        ),
    ],
    ids=["unknown engine", "broken engine", "unknown executor", "broken executor", "no endpoint", "useless endpoint"],
)
def test_mistakes(site: Path, flags: tuple[str, ...], said: list[str]) -> None:
    error = error_of(dialog_gen_in(site, *RUN, "out", *flags))
    assert [words for words in said if words not in error] == []
    assert not (site.parent / "out").exists()
