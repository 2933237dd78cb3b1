"""Runs of the embedded world's generator, to be timed."""

import io
import tarfile
from pathlib import Path

from dialog_gen.core.progress import ignore_progress
from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.base import EngineOptions
from dialog_gen.executors.base import ExecutorOptions
from dialog_gen.generation.plan import RunPlan, make_plan
from dialog_gen.generation.run import run_plan
from dialog_gen.generation.summary import RunResult
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene

IMAGES_A_TAR = 1024


def write_tars(folder: Path, images: int, *, distinct: int = 2048) -> Path:
    """Webdataset tars of `images` drawn scenes, of which `distinct` differ."""
    folder.mkdir()
    pngs = [render_png(draw_scene("test", 5, i)) for i in range(min(images, distinct))]
    for number, start in enumerate(range(0, images, IMAGES_A_TAR)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for index in range(start, min(start + IMAGES_A_TAR, images)):
                header = tarfile.TarInfo(f"{index:09d}.png")
                header.size = len(pngs[index % distinct])
                tar.addfile(header, io.BytesIO(pngs[index % distinct]))
    return folder


def plan_of(images: Path, out: Path) -> RunPlan:
    return make_plan(
        model="shapes-llava",
        images=str(images),
        out=str(out),
        engine="vllm",
        sampling={},
        seed=0,
        attempts=1,
        shard_size=1024,
        limit=None,
        options=EngineOptions(),
    )


def timed_run(plan: RunPlan, out: Path) -> RunResult:
    """Runs the plan into a folder of its own: what `generate` does between its checks and its summary."""
    result = RunResult()
    with open_writer(str(out), plan.config()) as store:
        options = ExecutorOptions(engines=1, frontends=1)
        run_plan(plan, "local", options, store, plan.shards(), plan.shards, ignore_progress, result, keep_going=False)
    return result
