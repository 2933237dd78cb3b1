"""Time and memory of `verify` at a million shards: `make bench`."""

import json
import time
from pathlib import Path

import pytest
from helpers.many_shards import write_many_shards
from helpers.memory import run_script

pytestmark = [pytest.mark.bench, pytest.mark.slow]

SHARDS, LIMIT_S, LIMIT_MB = 1_000_000, 1800, 600
SCRIPT = """
import json, sys
from dialog_gen.dataset.verify import verify
from helpers.memory import peak_rss
verdict = verify(sys.argv[1])
print(json.dumps([verdict.problems, verdict.shards, verdict.images, peak_rss()]))
"""


def test_a_million_shards(tmp_path: Path) -> None:
    """A tenth of them has rows; the others are those of a source whose images were all refused."""
    write_many_shards(tmp_path / "out", SHARDS)
    start = time.monotonic()
    ended = run_script(SCRIPT, str(tmp_path / "out"))
    took_s = time.monotonic() - start
    assert ended.returncode == 0, ended.stderr
    problems, shards, images, peak = json.loads(ended.stdout)
    print(f"\nverify of {shards} shards: {took_s:.0f} s, peak memory {peak / 1e6:.0f} MB")
    assert (problems, shards, images) == ([], SHARDS, SHARDS // 10)
    assert took_s < LIMIT_S
    assert peak / 1e6 < LIMIT_MB
