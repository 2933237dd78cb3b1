"""Memory of `dialog-gen run`: `make bench`."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.memory import run_script
from helpers.speed import write_tars

pytestmark = [pytest.mark.bench, pytest.mark.slow]

IMAGES = 2048

_PEAK = """
import json, sys
from dialog_gen.cli import app as cli
from helpers.memory import peak_rss
sys.argv = json.loads(sys.argv[1])
try:
    cli.main()
except SystemExit as ending:
    assert not ending.code, ending.code
print(peak_rss(), file=sys.stderr)
"""


def test_peak_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """Peak RSS of the run's own process at 2,048 and at 16,384 images."""
    peaks: dict[int, int] = {}
    for images in (IMAGES, 8 * IMAGES):
        source = write_tars(tmp_path / f"images-{images}", images)
        out = tmp_path / f"out-{images}"
        command = ["dialog-gen", "run", "--model", "shapes-llava", "--images", str(source), "--out", str(out)]
        done = run_script(_PEAK, json.dumps(command))
        assert done.returncode == 0, done.stderr
        peaks[images] = int(done.stderr.strip().rsplit("\n", 1)[-1])
        shutil.rmtree(source)
    small, large = peaks[IMAGES], peaks[8 * IMAGES]
    print(f"\npeak RSS {small / 1e6:.2f} GB at {IMAGES}, {large / 1e6:.2f} GB at {8 * IMAGES}: {large / small:.3f}")
    assert large / small <= 1.10
