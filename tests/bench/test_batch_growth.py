"""Batches of a large training set cost what those of a small one cost: time per row, and memory.

The shards of the large set are links to one file, so that the set takes little disk. Their pages are in the system's
cache: what is measured is the work of the reader, not the disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dialog_gen.core.files import write_json
from dialog_train.data.checked_rows import rows_writer
from dialog_train.data.row_files import id_lists, rows_schema

pytestmark = [pytest.mark.bench, pytest.mark.slow]

WIDTH, ROWS_OF_SHARD, PAIRS, BATCH = 512, 10_000, 3, 1024
ROWS = (10_000, 10_000_000)
SCRIPT = """
import gc, json, sys, time
import numpy as np
from pathlib import Path
from dialog_train.data.training_set import EpochOrder, TrainingSet
from dialog_train.system import EVERYTHING

def memory_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000

began = time.perf_counter()
rows = TrainingSet(Path(sys.argv[1]))
opened = time.perf_counter() - began
order = EpochOrder(len(rows), 1024, 0)
pool = [order.rows(step, EVERYTHING)[1] for step in range(9)]
times = []
for again in range(12):
    began = time.process_time()
    for chosen in pool:
        rows.batch(chosen, again, concatenate=False)
    times.append((time.process_time() - began) / sum(map(len, pool)) * 1e6)
gc.collect()
print(json.dumps({"open_s": opened, "first_us": times[0], "row_us": min(times[1:]), "memory_mb": memory_mb()}))
"""


def write_set(out: Path, rows: int) -> None:
    (out / "rows").mkdir(parents=True)
    schema = rows_schema(pa.field("vector", pa.list_(pa.float16(), WIDTH), nullable=False))
    rng = np.random.default_rng(0)
    first = out / "rows" / "00000.arrow"
    with rows_writer(first, schema, "f") as writer:
        for start in range(0, ROWS_OF_SHARD, 2048):
            count = min(2048, ROWS_OF_SHARD - start)
            lengths = rng.integers(6, 25, count * (1 + PAIRS))
            ids = rng.integers(1, 49_000, lengths.sum()).astype(np.int32)
            ends = np.cumsum(lengths)
            split = ends[count - 1]
            pairs = pa.array(np.arange(count + 1) * PAIRS, pa.int32())
            columns: list[Any] = [
                pa.array([f"image {start + row:09d}" for row in range(count)]),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(rng.standard_normal(count * WIDTH).astype(np.float16)), WIDTH
                ),
                id_lists(ids[:split], ends[:count]),
                pa.array(np.zeros(count, np.bool_)),
                pa.ListArray.from_arrays(pairs, id_lists(ids[split:], ends[count:] - split)),
                pa.ListArray.from_arrays(pairs, pa.array(np.zeros(count * PAIRS, np.bool_))),
                pa.array(np.zeros(count, np.bool_)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    shards = [[f"{number:05d}", ROWS_OF_SHARD] for number in range(rows // ROWS_OF_SHARD)]
    for name, _ in shards[1:]:
        os.link(first, out / "rows" / f"{name}.arrow")
    tokenizer = {"context_length": 77, "pad_id": 0, "start": [49406], "end": [49407]}
    write_json(out / "config.json", {"kind": "training set", "width": WIDTH, "crops": 0, "tokenizer": tokenizer})
    summary = {"rows": rows, "pairs": rows * PAIRS, "dropped": {}, "truncated": {}, "shards": shards}
    write_json(out / "summary.json", {"fingerprint": "f", **summary})


def test_a_row_costs_the_same_in_a_large_set(tmp_path: Path) -> None:
    found = dict[int, list[dict[str, float]]]()
    for rows in ROWS:
        write_set(tmp_path / str(rows), rows)
    # Alternately, because other processes may use the machine.
    for _ in range(3):
        for rows in ROWS:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, str(tmp_path / str(rows))], check=True, capture_output=True
            )
            found.setdefault(rows, []).append(json.loads(done.stdout))
    best = {rows: {name: min(one[name] for one in runs) for name in runs[0]} for rows, runs in found.items()}
    for rows, one in best.items():
        print(rows, "rows:", {name: round(value, 2) for name, value in one.items()})
    small, large = (best[rows] for rows in ROWS)
    # The small set is in the processor's caches, with its page tables; the large one (24 GB) cannot be.
    assert large["row_us"] < small["row_us"] + 1.5
    assert large["memory_mb"] < 1.1 * small["memory_mb"]
