"""Datasets that another process writes to: no false alarm, no error, and right rows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.rows import make_row, rows_of, shard_of, write_shard

from dialog_gen.dataset.errors import BeingWrittenError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.locks import is_being_written
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.inspect.sampling import sample_rows
from dialog_gen.inspect.statistics import stats
from dialog_gen.publish.compact import compact
from dialog_gen.publish.export import export
from dialog_gen.publish.push import push
from dialog_train.data.derived import read_rows, sources_of

CONFIG = {"schema_version": 3, "model": "m", "protocol": "p", "seed": 1}
COLUMNS = ["image_id", "texts"]
SHARDS, ROWS, LOOPS = 8, 120, 3

GATES = """
from dialog_gen.gates.apply import gate
while True:
    for gates in ("length", "empty,length"):
        gate(out, gates)
        tell()
"""
RUN = """
import time
from helpers.rows import make_row, shard_of, write_shard
from dialog_gen.dataset.writer import open_writer
with open_writer(out, config, shared=SHARED) as store:
    for number in range(8, 10**6):
        rows = [make_row(1000 * number + i, "accepted" if i % 3 else "rejected") for i in range(30)]
        write_shard(store, shard_of(f"s{number:02d}", 30), rows)
        tell()
        time.sleep(0.2)
"""
AGAIN = """
import time
from helpers.rows import make_row, shard_of, write_shard
from dialog_gen.dataset.writer import open_writer
with open_writer(out, config) as store:
    for turn in range(10**6):
        rows = [make_row(3000 + i, "accepted" if i % 4 else "rejected") for i in range(60 + turn % 60)]
        write_shard(store, shard_of("s03", len(rows), fingerprint=str(turn)), rows)
        tell()
        time.sleep(0.02)
"""
WRITERS = {"gates": GATES, "run": RUN.replace("SHARED", "False"), "several runs": RUN.replace("SHARED", "True")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    with open_writer(str(out), CONFIG) as store:
        for number in range(SHARDS):
            rows = [make_row(1000 * number + i, "accepted" if i % 4 else "rejected") for i in range(ROWS)]
            write_shard(store, shard_of(f"s{number:02d}", ROWS), rows)
    return out


@contextmanager
def writing(out: Path, script: str) -> Generator[Callable[[], int]]:
    """A process that writes; yields a function that counts its turns."""
    turns = out.parent / "turns"
    turns.touch()
    head = f"import sys\nsys.path[:0] = {sys.path!r}\nout, config = {str(out)!r}, {CONFIG!r}\n"
    head += f"def tell():\n    with open({str(turns)!r}, 'a') as file: file.write('.')\n"
    with subprocess.Popen([sys.executable, "-c", head + script]) as process:
        try:
            while not turns.stat().st_size:
                assert process.poll() is None
                time.sleep(0.02)
            yield lambda: turns.stat().st_size
            assert process.poll() is None
        finally:
            process.kill()


def old_rows(rows: Any) -> list[tuple[str, str]]:
    """Ids and texts of the rows that no writer adds or drops."""
    found = [(row["image_id"], row["texts"][0]["assistant"]) for row in rows]
    return [pair for pair in found if int(pair[0].split()[1]) < 1000 * SHARDS]


def read_all(out: Path, exported: Path) -> Any:
    """Every reader once; returns what they have to agree on."""
    folder = DatasetFolder.existing(str(out))
    verdict = verify(out)
    assert verdict.problems == []
    assert verdict.accepted + verdict.rejected + verdict.unreadable == verdict.images >= SHARDS * ROWS
    assert totals(out).problems == []
    counted = stats(out)
    assert counted.pairs == counted.accepted >= SHARDS * ROWS * 3 // 4
    export(out, exported, to="llava")
    dialogues = json.loads(next(exported.glob("*.json")).read_text())
    rows = old_rows(folder.rows(["image_id", "texts"]))
    trained = [row for source in sources_of(folder) for batch in read_rows(folder, source, COLUMNS) for row in batch]
    assert old_rows(trained) == rows
    sampled = old_rows(sample_rows(folder, ["image_id", "texts"], 10**6))
    return rows, sampled == rows, len(old_rows_of_export(dialogues)) == len(rows)


def old_rows_of_export(dialogues: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in dialogues if int(row["id"].split()[1]) < 1000 * SHARDS]


@pytest.mark.parametrize("writer", WRITERS)
def test_readers_beside_a_writer(out: Path, tmp_path: Path, writer: str) -> None:
    expected = (old_rows(rows_of(out)), True, True)
    assert len(expected[0]) == SHARDS * ROWS * 3 // 4
    assert read_all(out, tmp_path / "before") == expected
    loops, seen = 0, 0
    with writing(out, WRITERS[writer]) as turns:
        before = turns()
        while loops < LOOPS or turns() < before + LOOPS:
            assert read_all(out, tmp_path / f"export-{loops}") == expected
            seen += verify(out).being_written
            loops += 1
    assert seen >= 1


def test_a_shard_that_is_made_anew(out: Path) -> None:
    """Its rows are another snapshot's, or the reader says that a run is writing."""
    waits = 0
    with writing(out, AGAIN):
        for _ in range(20):
            verdict = verify(out)
            assert (verdict.problems, verdict.being_written) == ([], True)
            try:
                rows = list(DatasetFolder(str(out)).rows(["image_id"]))
                assert stats(out).pairs <= len(rows) + ROWS
            except BeingWrittenError:
                waits += 1
    assert waits < 20


def test_what_cannot_be_copied_meanwhile(out: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    with open_writer(str(out), CONFIG) as store:
        (out / "data" / "s99.parquet").write_bytes(b"half a shard")
        assert is_being_written(DatasetFolder(str(out)))
        for copy in (lambda: compact(out, tmp_path / "new"), lambda: push(out, "me/mine")):
            with pytest.raises(BeingWrittenError, match=r"a run is writing to .*out: wait for it"):
                copy()
        assert not (tmp_path / "new").exists()
        ended = dialog_gen_cli("verify", str(out))
        assert ended.code == 0
        assert f"{out}: a run is writing here: shards that it has not finished are not counted\n" in ended.out
        assert "a run is writing here" in dialog_gen_cli("status", str(out)).out
        assert json.loads(dialog_gen_cli("status", str(out), "--json").out)["being_written"] is True
        assert json.loads(dialog_gen_cli("verify", str(out), "--json").out)["being_written"] is True
        assert store.shards()
    assert not is_being_written(DatasetFolder(str(out)))
    assert verify(out).problems == ["data/s99.parquet belongs to no finished shard"]
    assert "a run is writing here" not in dialog_gen_cli("status", str(out)).out


@pytest.mark.parametrize("shared", [False, True])
def test_asking_disturbs_no_writer(out: Path, *, shared: bool) -> None:
    """A writer that starts while others ask is never refused."""
    script = (
        "from dialog_gen.dataset.folder import DatasetFolder\nfrom dialog_gen.dataset.locks import is_being_written\n"
    )
    script += "tell()\nwhile True: is_being_written(DatasetFolder(out))\n"
    with writing(out, script):
        for _ in range(100):
            with open_writer(str(out), CONFIG, shared=shared):
                pass
    assert verify(out).problems == []


def test_damage_is_told_beside_a_writer(out: Path) -> None:
    with open_writer(str(out), CONFIG):
        (out / "data" / "s03.parquet").unlink()
        assert verify(out).problems == ["shard s03: data/s03.parquet is missing"]


def test_an_object_store_has_no_locks() -> None:
    """There, a file that has just appeared may be one that a run will finish."""
    import fsspec

    location = "memory://live"
    with open_writer(location, CONFIG) as store:
        write_shard(store, shard_of("s", 1), [make_row(1)])
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/live/data/t.parquet", b"half")
    verdict = verify(location)
    assert (verdict.problems, verdict.being_written) == ([], True)
    fs.store["/live/data/t.parquet"].modified = fs.store["/live/data/t.parquet"].modified.replace(year=2020)
    verdict = verify(location)
    assert verdict.problem_count == 1
    assert not verdict.being_written
    fs.rm("/live", recursive=True)
