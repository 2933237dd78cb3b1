"""A long run of small images: its memory stays flat, its rate constant, its accounting exact: `make bench`."""

import json
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from helpers.inputs import png, sha256, write_tar
from helpers.memory import MEASURABLE, run_script

pytestmark = [pytest.mark.bench, pytest.mark.slow]

IMAGES, IMAGES_A_TAR, WARM = 100_000, 1000, 10_000
REFUSED_EVERY, BROKEN_EVERY = 100, 250
SCRIPT = """
import hashlib, json, sys, time
from dialog_gen import generate, verify
from dialog_gen.engines.base import ENGINES, Answer, EngineEntry
from helpers.memory import rss

class Instant:
    name, version, deterministic = "instant", "1", True

    async def answer(self, request):
        seed = int(request.image_sha256[:8], 16)
        text = "\\n".join(f"{i}. Q: What is at {seed} {i}? A: It is {seed + i}." for i in (1, 2, 3))
        return Answer(
            text="..." if request.image_sha256 in refused else text,
            finish_reason="stop", output_tokens=24, saw_image=True,
        )

    async def close(self):
        pass

class Entry(EngineEntry):
    name, description, needs = "instant", "answers at once", "name"

    def start(self, model, sampling, options):
        return Instant()

ENGINES.register("instant")(Entry())
images, out, step, refused = sys.argv[1], sys.argv[2], int(sys.argv[3]), set(json.loads(sys.argv[4]))
samples, next_at = [], 0

def sample(stage, done, total, unit="", note=""):
    global next_at
    if stage == "dialogues" and unit and done >= next_at:
        samples.append([done, time.process_time(), time.monotonic(), rss()])
        next_at = done - done % step + step

result = generate(model="m", engine="instant", images=images, out=out, max_losses=1, attempts=1, on_progress=sample)
found = [result.images, result.accepted, result.rejected, result.unreadable, result.summary["run"]["images"]]
print(json.dumps([samples, found, verify(out).problems]))
"""


@pytest.mark.skipif(not MEASURABLE, reason="reads memory from Linux")
def test_a_hundred_thousand_images(tmp_path: Path) -> None:
    """Every hundredth image is refused, every 250th is broken. Rates are of the process's own time: others may work."""
    refused = list[str]()
    for tar in range(IMAGES // IMAGES_A_TAR):
        members = dict[str, bytes]()
        for number in range(tar * IMAGES_A_TAR, (tar + 1) * IMAGES_A_TAR):
            data = png(number, (32, 32))
            if number % REFUSED_EVERY == 1:
                refused.append(sha256(data))
            members[f"{number:06d}.png"] = data[:40] if number % BROKEN_EVERY == 2 else data
        write_tar(tmp_path / "in" / f"{tar:03d}.tar", members)
    step = WARM // 2
    ended = run_script(SCRIPT, str(tmp_path / "in"), str(tmp_path / "out"), str(step), json.dumps(refused))
    assert ended.returncode == 0, ended.stderr
    samples, found, problems = json.loads(ended.stdout)
    lost = len(refused), IMAGES // BROKEN_EVERY
    assert found == [IMAGES, IMAGES - sum(lost), *lost, IMAGES]
    assert problems == []
    rates = list[float]()
    for (done, cpu, at, _), (done_now, cpu_now, now, memory) in pairwise(samples):
        rates.append((done_now - done) / (cpu_now - cpu))
        wall = (done_now - done) / (now - at)
        print(f"{done_now:>7} images: {memory / 1e6:.0f} MB, {wall:.0f} images/s, {rates[-1]:.0f} a second of CPU")
    warm = [memory for done, _, _, memory in samples if done >= WARM]
    assert max(warm) < 1.1 * warm[0]
    settled = [rate for (done, *_), rate in zip(samples, rates, strict=False) if done >= WARM]
    third = len(settled) // 3
    print(f"rate of the last third over that of the first: {median(settled[-third:]) / median(settled[:third]):.2f}")
    assert median(settled[-third:]) > 0.85 * median(settled[:third])
