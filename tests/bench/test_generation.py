"""Throughput and memory of `dialog-gen run`, as ratios within one process: `make bench`.

Figures are printed; see README, "Speed".
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.base import EngineOptions
from dialog_gen.generation.dialogue import seed_of
from dialog_gen.generation.plan import RunPlan, make_plan
from dialog_gen.generation.runner import Runner
from dialog_gen.generation.summary import RunResult
from dialog_gen.protocols.protocol import conversation
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene
from dialog_gen.sources.images import decode_image

pytestmark = [pytest.mark.bench, pytest.mark.slow]

IMAGES = 2048
IMAGES_A_TAR = 1024
ROUNDS = 3


def write_tars(folder: Path, images: int, *, distinct: int = IMAGES) -> Path:
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


def test_run_against_bare_vllm(tmp_path: Path) -> None:
    """Rows/s of the run over rows/s of `LLM.generate` on the same decoded images; start-up is in neither."""
    from vllm import LLM, SamplingParams

    from dialog_gen.engines.vllm.engine import engine_arguments

    plan = plan_of(write_tars(tmp_path / "images", IMAGES), tmp_path / "out")
    sources = [image for shard in plan.shards() for image in shard.read()]
    model, sampling, options = plan.engine.model, plan.engine.sampling, plan.engine.options
    bare = LLM(**engine_arguments(model, options))
    prompt = model.render(conversation(plan.generator.protocol.turns[0].user))
    decoded = [decode_image(source.data) for source in sources]
    # The seeds that the run uses: both sides generate the same tokens.
    parameters = [
        SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=seed_of(0, hashlib.sha256(source.data).hexdigest(), 1),
        )
        for source in sources
    ]
    prompts = [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in decoded]
    # Both sides do their first imports before the clock runs.
    bare.generate(prompts[:64], parameters[:64], use_tqdm=False)
    warm = plan_of(write_tars(tmp_path / "few", 64), tmp_path / "warm")
    with open_writer(str(tmp_path / "warm"), warm.config()) as store:
        Runner(store=store, generator=plan.generator, engine=plan.engine).run(warm.shards(), RunResult().add)

    ratios: list[float] = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        outputs = bare.generate(prompts, parameters, use_tqdm=False)
        bare_seconds = time.perf_counter() - began
        bare_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        with open_writer(str(tmp_path / f"out-{number}"), plan.config()) as store:
            result = RunResult()
            Runner(store=store, generator=plan.generator, engine=plan.engine).run(plan.shards(), result.add)
        assert result.counts["accepted"] + result.counts["rejected"] == IMAGES
        # The same work: equal seeds gave equal numbers of tokens.
        assert result.output_tokens == bare_tokens
        ratios.append(bare_seconds / result.seconds)
        print(
            f"\nrun {IMAGES / result.seconds:.1f} images/s, bare vllm {IMAGES / bare_seconds:.1f} images/s: "
            f"ratio {ratios[-1]:.2f}"
        )
    assert sorted(ratios)[ROUNDS // 2] >= 0.8


_PEAK = """
import json, resource, sys
from dialog_gen.cli import app as cli
sys.argv = json.loads(sys.argv[1])
try:
    cli.main()
except SystemExit as ending:
    assert not ending.code, ending.code
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss), file=sys.stderr)
"""


def test_peak_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """Peak RSS of the run's own process at 2,048 and at 16,384 images."""
    peaks: dict[int, int] = {}
    for images in (IMAGES, 8 * IMAGES):
        source = write_tars(tmp_path / f"images-{images}", images)
        out = tmp_path / f"out-{images}"
        command = ["dialog-gen", "run", "--model", "shapes-llava", "--images", str(source), "--out", str(out)]
        done = subprocess.run([sys.executable, "-c", _PEAK, json.dumps(command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks[images] = int(done.stderr.strip().rsplit("\n", 1)[-1])
        shutil.rmtree(source)
    small, large = peaks[IMAGES], peaks[8 * IMAGES]
    print(f"\npeak RSS {small / 1e6:.2f} GB at {IMAGES}, {large / 1e6:.2f} GB at {8 * IMAGES}: {large / small:.3f}")
    assert large / small <= 1.10
