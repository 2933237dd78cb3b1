"""Time and memory of what reads a dataset of a million shards: `make bench`."""

import json
import time
from pathlib import Path

import pytest
from helpers.many_shards import write_many_shards
from helpers.memory import run_script
from helpers.rows import make_row, shard_of, write_shard
from helpers.slow_store import SlowStore

from dialog_gen.dataset.writer import open_writer

pytestmark = [pytest.mark.bench, pytest.mark.slow]

SHARDS, LIMIT_MB = 1_000_000, 600
LIMITS_CPU_S = {
    "listing": 3,
    "resume": 280,
    "totals": 50,
    "verify": 640,
    "repair": 690,
    "stats": 610,
    "merge: checks": 430,
    "compact: checks": 330,
}
"""Twice what was measured. Resuming takes 29 s if the manifests are in the page cache, 139 s if they are not."""
REMOTE_SHARDS, LATENCY_S = 2_000, 0.02
SCRIPT = """
import json, sys, time
from dataclasses import dataclass, field
from dialog_gen.dataset.folder import open_dataset
from dialog_gen.dataset.intact import check_unique_ids
from dialog_gen.dataset.repair import set_aside_damage
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.generation.committer import Committer
from dialog_gen.inspect.statistics import stats
from dialog_gen.publish import compact, merge
from helpers.memory import peak_rss, reset_peak_rss

out, shards = sys.argv[1], int(sys.argv[2])
folder = open_dataset(out)

@dataclass
class Unit:
    name: str
    count: int = 0
    fingerprint: str = "f"
    unused: dict = field(default_factory=dict)

def resume():
    skipped = 0

    def report(event):
        nonlocal skipped
        skipped += 1

    with open_writer(out, folder.config()) as store:
        units = (Unit(f"s-{number:07d}") for number in range(shards))
        assert not list(Committer(store, report).incomplete(units))
    return skipped

def is_sound(verdict):
    assert not verdict.problem_count, verdict.problems
    return verdict.shards

def compact_checks():
    groups = compact._groups([folder], 500 * 10**6, True)
    sizes = []

    def grouped():
        for group in groups:
            sizes.append(len(group))
            yield from ((shard.folder, shard.manifest) for shard in group)

    check_unique_ids([folder], grouped())
    return sum(sizes)

def measure(what, work):
    reset_peak_rss()
    wall, cpu = time.monotonic(), time.process_time()
    found = work()
    figures = time.monotonic() - wall, time.process_time() - cpu, peak_rss() / 1e6
    print(json.dumps([what, found, *figures]), flush=True)

measure("listing", lambda: len(folder.shards()))
measure("resume", resume)
measure("totals", lambda: totals(folder).shards)
measure("verify", lambda: is_sound(verify(folder)))
measure("repair", lambda: is_sound(set_aside_damage(out).verdict))
measure("stats", lambda: stats(folder).shards)
measure("merge: checks", lambda: merge._check_inputs([folder], lambda *_: None))
measure("compact: checks", compact_checks)
"""


def test_a_million_shards(tmp_path: Path) -> None:
    """Takes about 40 minutes on a quiet machine, and 6 GB of disk."""
    write_many_shards(tmp_path / "out", SHARDS)
    ended = run_script(SCRIPT, str(tmp_path / "out"), str(SHARDS))
    print(f"\n{SHARDS} shards")
    measured = [json.loads(line) for line in ended.stdout.splitlines()]
    for what, _, wall_s, cpu_s, peak_mb in measured:
        print(f"{what:>16}: {wall_s:5.0f} s, {cpu_s:5.0f} s of CPU, peak memory {peak_mb:.0f} MB")
    assert ended.returncode == 0, ended.stderr
    assert [what for what, *_ in measured] == list(LIMITS_CPU_S)
    for what, found, _, cpu_s, peak_mb in measured:
        assert found == SHARDS, what
        assert cpu_s < LIMITS_CPU_S[what], what
        assert peak_mb < LIMIT_MB, what


def test_resume_at_a_slow_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request takes 20 ms; one after the other, the three requests for each shard would take two minutes."""
    with open_writer("slow://bench", {"model": "m"}) as store:
        for number in range(REMOTE_SHARDS):
            write_shard(store, shard_of(f"s{number:04d}", 1), [make_row(number)])
    monkeypatch.setattr(SlowStore, "latency_s", LATENCY_S)
    with open_writer("slow://bench", {"model": "m"}) as store:
        SlowStore.reset()
        start = time.monotonic()
        assert all(store.finished(shard_of(f"s{number:04d}", 1)) for number in range(REMOTE_SHARDS))
        took_s = time.monotonic() - start
    one_by_one_s = LATENCY_S * SlowStore.requests.total()
    print(f"\n{REMOTE_SHARDS} shards resumed in {took_s:.1f} s, one by one {one_by_one_s:.1f} s")
    assert took_s < one_by_one_s / 8
