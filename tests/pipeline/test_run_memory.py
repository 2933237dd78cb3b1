"""Memory of a run is bounded by bytes: large images, few of them at a time."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_files
from helpers.memory import MEASURABLE, run_script
from helpers.rows import rows_of
from helpers.runs import run
from PIL import Image

from dialog_gen.dataset import shard_writer as writer_module
from dialog_gen.engines.base import Answer, Request
from dialog_gen.generation import runner as runner_module

_PEAK = """
import sys
from pathlib import Path
from helpers.engine import ScriptedEngine
from helpers.memory import peak_rss
from helpers.runs import run
source, out = map(Path, sys.argv[1:])
result = run(source, out, ScriptedEngine(max_delay_s=0.5), max_in_flight=256, shard_size=1024)
assert result.counts == {"accepted": len(list(source.iterdir()))}, result.counts
print(peak_rss())
"""


def peak_of(source: Path, out: Path) -> int:
    """Bytes, of a run in a process of its own."""
    done = run_script(_PEAK, str(source), str(out))
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason="reads the peak from Linux")
def test_peak_memory_does_not_grow_with_the_number_of_large_images(tmp_path: Path) -> None:
    """A budget of 1 GiB, and what the interpreter and its libraries take. 24 decoded images take 3.5 GB."""
    large = png(1, (6000, 6000))
    peaks = {
        count: peak_of(
            write_files(tmp_path / f"{count}", {f"{n}.png": large for n in range(count)}), tmp_path / f"out {count}"
        )
        for count in (8, 24)
    }
    print({count: f"{peak / 1e9:.2f} GB" for count, peak in peaks.items()})
    assert peaks[24] < 1.6e9
    # 16 more decoded images take 2.3 GB. How much of the budget 8 images use depends on when dialogues end.
    assert peaks[24] - peaks[8] < 0.5e9


class Counting(ScriptedEngine):
    """Counts the bytes of the images in its requests; each answer takes a time of its own."""

    now = most = 0

    async def answer(self, request: Request) -> Answer:
        size = 4 * request.images[0].width * request.images[0].height
        self.now += size
        self.most = max(self.most, self.now)
        try:
            return await super().answer(request)
        finally:
            self.now -= size


@pytest.mark.parametrize("seed", range(6))
def test_any_sizes_pass_a_small_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Shards overlap, rows end in any order, some images are larger than the budget, some are no images."""
    rng = random.Random(seed)
    limit = rng.choice([1, 40_000, 200_000])
    monkeypatch.setattr(runner_module, "BUDGET_BYTES", limit)
    monkeypatch.setattr(writer_module, "BYTES_PER_GROUP", rng.choice([300, 1 << 20]))
    images = [png(n, rng.choice([(4, 4), (40, 40), (90, 90), (300, 200)])) for n in range(90)]
    images[17], images[40] = b"<html>", b""
    source = write_files(tmp_path / "in", {f"{n:03d}.png": data for n, data in enumerate(images)})
    engine = Counting(malformed={sha256(images[5]): EVERY, sha256(images[60]): [1]}, max_delay_s=0.01)
    result = run(source, tmp_path / "out", engine, shard_size=rng.choice([1, 7, 64]), max_in_flight=50)
    assert result.counts == {"accepted": 87, "rejected": 1, "unreadable": 2}
    rows = rows_of(tmp_path / "out") + rows_of(tmp_path / "out", "rejects")
    assert {row["image_id"]: row["images"][0]["bytes"] for row in rows} == {
        f"{n:03d}.png": data for n, data in enumerate(images)
    }
    assert [row["image_id"] for row in rows[:87]] == [f"{n:03d}.png" for n in range(90) if n not in (5, 17, 40)]
    # An image larger than the budget is decoded alone, or with the few small ones that were read together with it.
    assert engine.most <= max(limit, 4 * 300 * 200 + limit // 16)


def test_a_row_group_of_large_images_has_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [Image.effect_noise((64, 64), 90 + n) for n in range(12)]
    (tmp_path / "in").mkdir()
    for number, image in enumerate(noise):
        image.save(tmp_path / "in" / f"{number:02d}.png")
    size = max(file.stat().st_size for file in (tmp_path / "in").iterdir())
    monkeypatch.setattr(writer_module, "BYTES_PER_GROUP", 4 * size)
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine(), shard_size=12)
    metadata: Any = pq.read_metadata(tmp_path / "out" / "data" / "images-000000.parquet")
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(rows) == 12
    assert len(rows) > 1
    assert max(rows) <= 5
    assert json.loads((tmp_path / "out" / "shards" / "images-000000.json").read_text())["accepted"] == 12
