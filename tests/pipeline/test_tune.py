"""`dialog-gen tune` with an engine of another package, whose speed and memory are known; and with vLLM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.distributions import python_with, write_distribution
from helpers.inputs import png, write_images, write_tar

import dialog_gen
from dialog_gen.generation import tune as tune_module

# It answers `max_num_seqs` requests at a time, each in a time that depends on the settings; all answers have 10 tokens.
SNAIL = """
import asyncio
import os
import time

from dialog_gen.engines.base import ENGINES, SPECIAL_OPTIONS, Answer, EngineEntry


class Snail:
    name, version, deterministic = "snail", "1", True

    def __init__(self, options):
        fast = options.kv_cache_dtype == "fp8"
        self.kv_cache_tokens = 25600 if fast else 12800
        self._seconds = 0.2 if fast else 0.4
        if options.max_num_batched_tokens:
            self._seconds *= 3
        self._slots = asyncio.Semaphore(options.max_num_seqs or 64)
        self.names, self.images = set(), set()

    async def answer(self, request):
        assert request.image_sha256 not in self.names, "an engine with a prefix cache would have seen this image"
        self.names.add(request.image_sha256)
        if len(request.images) not in self.images:
            self.images.add(len(request.images))
            with open("images.txt", "a") as file:
                file.write(f"{len(request.images)}\\n")
        async with self._slots:
            await asyncio.sleep(self._seconds)
        text = "1. Q: What is it? A: A snail. 2. Q: Is it slow? A: It is. 3. Q: Where is it? A: At home."
        return Answer(text=text, finish_reason="stop", output_tokens=10, prompt_tokens=190, saw_image=True)

    async def close(self):
        pass


class SnailEntry(EngineEntry):
    name = "snail"
    description = "slow"
    needs = "name"
    knows = SPECIAL_OPTIONS

    def start(self, model, sampling, options):
        with open("starts.txt", "a") as file:
            file.write(f"{os.getpid()}\\n")
        if model.name == "asleep":
            time.sleep(600)
        if options.quantization:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Snail(options)


ENGINES.register("snail")(SnailEntry())
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 8)
    return write_distribution(
        tmp_path / "site", "snails", {"snail_of_a_test": SNAIL}, {"dialog_gen.engines": {"snail": "snail_of_a_test"}}
    )


TUNE = ("-m", "dialog_gen", "tune", "--images", "images", "--engine", "snail")
# A window of a second for each choice, however long the search may take.
SHORT = "from dialog_gen.cli.app import main; from dialog_gen.generation import tune; tune._WINDOW_PART = 0; main()"


def test_the_fastest_settings(site: Path) -> None:
    tune = ("-c", SHORT, *TUNE[2:])
    done = python_with(site, *tune, "--model", "shelly", "--seconds", "280", "--json", cwd=site.parent)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    tried = {trial["flags"]: trial for trial in result["tried"]}
    # Requests have 200 tokens, so 64 and 128 of them fit.
    seqs = "--max-num-seqs"
    fp8 = "--kv-cache-dtype fp8"
    assert list(tried)[:5] == ["", fp8, f"{fp8} --quantization fp8", f"{fp8} {seqs} 128", f"{seqs} 64"]
    assert len(tried) == 7
    # The engine is no faster, and on a busy machine its requests wait.
    assert 0.4 < tried[""]["images_per_second"] / (64 / 0.4) < 1.1
    assert tried[""]["output_tokens_per_second"] == pytest.approx(10 * tried[""]["images_per_second"])
    assert tried[fp8]["images_per_second"] > 1.3 * tried[""]["images_per_second"]
    assert (tried[fp8]["kv_cache_tokens"], tried[fp8]["request_tokens"]) == (25600, 200)
    failed = tried[f"{fp8} --quantization fp8"]
    assert failed["images_per_second"] is None
    assert failed["problem"].startswith("out of memory: snail did not start on shelly: ")
    assert [trial["changes_texts"] for trial in result["tried"][:5]] == [False, True, True, True, False]
    assert result["best_flags"] in (fp8, f"{fp8} {seqs} 128")
    assert result["best_flags_same_texts"] in ("", f"{seqs} 64")
    # Each engine had a process of its own, which has ended.
    processes = [int(line) for line in (site.parent / "starts.txt").read_text().split()]
    assert len(set(processes)) == len(processes) == 7
    assert not any(psutil.pid_exists(number) for number in processes)
    assert "CUDA out of memory" in (Path(result["logs"]) / "2.log").read_text() or Path(result["logs"]).is_dir()


def test_the_images_of_a_sample_are_asked_about_together(site: Path) -> None:
    folder = site.parent / "images"
    for file in folder.iterdir():
        file.unlink()
    pairs = {f"{n}{side}.png": png(2 * n + at) for n in range(4) for at, side in enumerate(("", ".b"))}
    write_tar(folder / "pairs.tar", pairs)
    one_setting = f"from dialog_gen.generation import tune; tune._TYPES = ({{}},); {SHORT}"
    tune = ("-c", one_setting, *TUNE[2:], "--images-per-sample", "all")
    done = python_with(site, *tune, "--model", "shelly", "--seconds", "60", "--json", cwd=site.parent)
    assert done.returncode == 0, done.stderr
    assert set((site.parent / "images.txt").read_text().split()) == {"2"}


# A clock that jumps by an hour when the engine is being started.
JUMP = """
import time
from pathlib import Path
from dialog_gen.cli.app import main
now = time.monotonic
time.monotonic = lambda: now() + 3600 * Path("starts.txt").exists()
main()
"""


def test_the_time_is_kept(site: Path) -> None:
    done = python_with(site, "-c", JUMP, *TUNE[2:], "--model", "asleep", "--seconds", "280", cwd=site.parent)
    assert done.returncode == 1
    assert "not ready when the time was over" in done.stdout
    assert "not tried: the time was over" in done.stdout
    assert done.stderr == "error: no engine could be measured; the notes say why.\n"
    (process,) = (site.parent / "starts.txt").read_text().split()
    assert not psutil.pid_exists(int(process))


def test_ctrl_c_prints_what_was_measured(site: Path) -> None:
    paths = os.pathsep.join([str(site), str(Path(dialog_gen.__file__).parents[1])])
    running = subprocess.Popen(
        [sys.executable, *TUNE, "--model", "shelly"],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    starts = site.parent / "starts.txt"
    deadline = time.monotonic() + 200
    while not starts.exists() or len(starts.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err == "error: interrupted: the table holds what was measured.\n"
    assert "(defaults)" in out
    assert "fastest: the defaults" in out
    assert "interrupted" in out
    assert not any(psutil.pid_exists(int(number)) for number in starts.read_text().split())


def test_images_that_cannot_be_read(site: Path) -> None:
    for file in (site.parent / "images").iterdir():
        file.write_bytes(b"no image")
    done = python_with(site, *TUNE, "--model", "shelly", "--seconds", "100", cwd=site.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert "none of the first 512 images can be read" in done.stderr
    assert not (site.parent / "starts.txt").exists()


@pytest.mark.slow
def test_vllm_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is and with quantised weights; what would be tried then is interrupted."""
    monkeypatch.setattr(tune_module, "_TYPES", ({}, {"quantization": "fp8"}))
    monkeypatch.setattr(tune_module, "_WINDOW_PART", 0)

    def interrupt(unit: str, done: int, *_: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    images = write_images(tmp_path / "images", 8)
    result = dialog_gen.tune(model="shapes-llava", images=images, seconds=600, on_progress=interrupt)
    default, weights = result.to_json()["tried"][:2]
    assert default["images_per_second"] > 0
    assert default["kv_cache_tokens"] > 0
    assert "vLLM's build for CPUs does not quantise weights" in weights["problem"]
