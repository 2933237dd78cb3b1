"""Two processes that feed one engine, over one: rows/s with an engine that answers at once. `make bench`."""

import json
import statistics
from pathlib import Path

import pytest
from helpers.distributions import python_with, write_distribution
from helpers.inputs import write_tar
from helpers.instant import INSTANT, INSTANT_POINTS

from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene

pytestmark = [pytest.mark.bench, pytest.mark.slow]

TARS = 16
IMAGES_A_TAR = 1024
ROUNDS = 5
LEAST = 1.8


def test_two_frontends_over_one(tmp_path: Path) -> None:
    """From when the engine is ready to the last committed shard, in alternation."""
    site = write_distribution(tmp_path / "site", "instant", INSTANT, INSTANT_POINTS)
    pngs = [render_png(draw_scene("test", 5, index)) for index in range(IMAGES_A_TAR)]
    for tar in range(TARS):
        members = {f"{tar * IMAGES_A_TAR + index:09d}.png": data for index, data in enumerate(pngs)}
        write_tar(tmp_path / "images" / f"{tar:05d}.tar", members)

    def rows_per_second(frontends: int, number: int) -> float:
        out = f"out-{frontends}-{number}"
        flags = ("--model", "any", "--engine", "instant", "--images", "images", "--out", out)
        ended = python_with(
            site, "-m", "dialog_gen.cli.app", "run", *flags, "--frontends", str(frontends), "--json", cwd=tmp_path
        )
        assert ended.returncode == 0, ended.stderr
        run = json.loads(ended.stdout)["run"]
        assert run["accepted"] == TARS * IMAGES_A_TAR
        return run["images_per_second"]

    rates = [(rows_per_second(1, number), rows_per_second(2, number)) for number in range(ROUNDS)]
    for one, two in rates:
        print(f"\none frontend {one:.0f} rows/s, two {two:.0f} rows/s: ratio {two / one:.2f}")
    ratio = statistics.median(two / one for one, two in rates)
    print(f"median {ratio:.2f}")
    assert ratio >= LEAST
