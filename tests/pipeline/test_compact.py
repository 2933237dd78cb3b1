import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.crashes import crash_at
from helpers.inputs import sha256
from helpers.progress import Heard
from helpers.rows import files_of, make_row, rows_of, shard_of, sign, write_shard

from dialog_gen.cli.remedies import explained
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.errors import OtherConfigError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.dataset.writer import check_config, open_writer
from dialog_gen.publish import compact as compact_module
from dialog_gen.publish.compact import CompactSummary, compact

CONFIG: dict[str, Any] = {"schema_version": 3, "model": "m"}
STATUSES = ("accepted", "accepted", "rejected", "accepted", "unreadable")
PATH = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path])


def noisy_row(number: int) -> dict[str, Any]:
    """One whose image takes more room than the rest."""
    data = random.Random(number).randbytes(1000)
    images = [{"bytes": data, "path": "noise"}]
    return make_row(number, STATUSES[number % 5], images=images, image_sha256=sha256(data))


def make_source(out: Path, shards: int = 5, rows: int = 45) -> Path:
    with open_writer(str(out), CONFIG) as store:
        for number in range(shards):
            made = [noisy_row(1000 * number + i) for i in range(rows)]
            write_shard(store, shard_of(f"s{number}", rows), made)
        store.put_json("run.json", {"run": 1})
    return out


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


def merged(source: Path, out: Path, **options: Any) -> CompactSummary:
    return compact(source, out, **options)


def small_shards(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A "megabyte" is what two of the source's shards take."""
    folder = DatasetFolder(str(source))
    stored = [compact_module._stored_bytes(folder, entry, True) for s in folder.manifests() for entry in s.files]
    size = 2 * sum(stored) // len(folder.shards()) + 1000
    groups = compact_module._groups
    monkeypatch.setattr(compact_module, "_groups", lambda folder, _, images: groups(folder, size, images))


@pytest.mark.parametrize("images", [True, False])
def test_the_same_rows_in_fewer_shards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool
) -> None:
    small_shards(source, monkeypatch)
    before = files_of(source)
    summary = merged(source, tmp_path / "out", without_images=not images)
    assert files_of(source) == before
    for part in ("data", "rejects"):
        wanted = [row | ({} if images else {"images": None}) for row in rows_of(source, part, volatile=True)]
        assert rows_of(tmp_path / "out", part, volatile=True) == wanted
    folder = DatasetFolder(str(tmp_path / "out"))
    verdict, old = verify(folder), verify(DatasetFolder(str(source)))
    assert verdict.problems == []
    assert (verdict.images, verdict.reasons, verdict.pairs) == (old.images, old.reasons, old.pairs)
    assert verdict.shards == summary.shards == (3 if images else 1)  # what is left of them is much smaller
    assert [manifest.output_tokens for manifest in folder.manifests()] == ([180, 180, 90] if images else [450])
    assert folder.config() == {**CONFIG, "compacted": {"shard_mb": 500, "images": images}}
    assert (tmp_path / "out" / "run.json").read_bytes() == (source / "run.json").read_bytes()


def test_row_groups_that_the_viewer_can_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "source", shards=3, rows=150)
    merged(source, tmp_path / "out")
    metadata = pq.ParquetFile(tmp_path / "out" / "data" / "part-00000.parquet").metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [100, 100, 70]
    assert {group.column(0).compression for group in groups} == {"ZSTD"}
    assert all(group.column(0).has_offset_index for group in groups)
    # Where a hundred images are too much, there are fewer in a group.
    monkeypatch.setattr(compact_module, "BYTES_PER_GROUP", 20_000)
    merged(source, tmp_path / "small")
    metadata = pq.ParquetFile(tmp_path / "small" / "data" / "part-00000.parquet").metadata
    assert all(metadata.row_group(number).total_byte_size < 20_000 for number in range(metadata.num_row_groups))
    assert rows_of(tmp_path / "small") == rows_of(source)


def test_a_source_that_grows_and_shrinks(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(source, monkeypatch)
    out = tmp_path / "out"
    merged(source, out)
    first = (out / "data" / "part-00000.parquet").stat().st_ino
    assert merged(source, out).shards_already_done == 3
    with open_writer(str(source), CONFIG) as store:
        write_shard(store, shard_of("s5", 5), [make_row(9000 + i) for i in range(5)])
    assert merged(source, out).shards_already_done == 2  # the last one has more to hold
    assert (out / "data" / "part-00000.parquet").stat().st_ino == first
    assert rows_of(out) == rows_of(source)
    with open_writer(str(source), CONFIG) as store:
        for name in ("s2", "s3", "s4", "s5"):
            store.drop(name)
    merged(source, out)
    assert rows_of(out) == rows_of(source)
    assert set(files_of(out)) == {"README.md", "config.json", "run.json", "command.json"} | {
        f"{part}/part-00000.{ending}"
        for part, ending in (("data", "parquet"), ("rejects", "parquet"), ("shards", "json"))
    }


def gate(out: Path, gates_sha256: str) -> None:
    folder = DatasetFolder(str(out))
    with open_writer(str(out), folder.config()) as store:
        for manifest in list(store.manifests()):
            store.rewrite(manifest, lambda table: table, gates_sha256=gates_sha256)
        store.put_json("gates.json", {"by": gates_sha256})


def test_gates(source: Path, tmp_path: Path) -> None:
    """Those of the source come along; those of the merged dataset stay its own until the source changes."""
    out = tmp_path / "out"
    gate(source, "a")
    merged(source, out)
    assert [s.gates_sha256 for s in DatasetFolder(str(out)).manifests()] == ["a"]
    gate(out, "b")
    assert verify(DatasetFolder(str(out))).problems == []
    merged(source, out)
    assert [s.gates_sha256 for s in DatasetFolder(str(out)).manifests()] == ["b"]
    assert unsealed((out / "gates.json").read_bytes()) == {"by": "b"}
    gate(source, "c")
    merged(source, out)
    assert [s.gates_sha256 for s in DatasetFolder(str(out)).manifests()] == ["c"]
    assert unsealed((out / "gates.json").read_bytes()) == {"by": "c"}
    assert verify(DatasetFolder(str(out))).problems == []


def test_merging_what_was_merged(source: Path, tmp_path: Path) -> None:
    merged(source, tmp_path / "small", without_images=True)
    merged(tmp_path / "small", tmp_path / "again")
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "small")
    assert DatasetFolder(str(tmp_path / "again")).config()["compacted"] == {"shard_mb": 500, "images": False}


# Crashes


def merge_somewhere(source: str, out: str) -> None:
    compact_module._stored_bytes = lambda *_: 1_000_000
    compact(DatasetFolder(source), out, shard_mb=1)


def crash_everywhere(source: str, outs: str) -> None:
    """As in test_store: one folder for each file at whose opening, renaming or removing the process ends at once."""
    os.fsync = lambda descriptor: None
    merge_somewhere(source, f"{outs}/0")
    for crash in range(1, 1000):
        out = f"{outs}/{crash}"
        if (child := os.fork()) == 0:
            sys.addaudithook(crash_at(crash, out))
            merge_somewhere(source, out)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


@pytest.mark.slow
def test_a_kill_at_any_moment_is_made_good_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "source", shards=2, rows=5)
    (tmp_path / "outs").mkdir()
    code = f"import test_compact as t; t.crash_everywhere({str(source)!r}, {str(tmp_path / 'outs')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": PATH})
    outs = sorted((tmp_path / "outs").iterdir(), key=lambda out: int(out.name))
    undisturbed = files_of(outs.pop(0))
    assert sum(name.startswith("shards/") for name in undisturbed) == 2
    assert files_of(outs.pop()) == undisturbed
    assert len(outs) > 20
    monkeypatch.setattr(compact_module, "_stored_bytes", lambda *_: 1_000_000)
    for out in outs:
        assert all("no finished shard" in p for p in verify_if_begun(out))
        compact(DatasetFolder(str(source)), str(out), shard_mb=1)
        assert files_of(out) == undisturbed


def verify_if_begun(out: Path) -> list[str]:
    return verify(DatasetFolder(str(out))).problems if (out / "config.json").exists() else []


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(source, monkeypatch)
    write, left = pq.ParquetWriter.write_table, [3]

    def write_table(self: pq.ParquetWriter, *arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        write(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", write_table)
        with pytest.raises(DialogGenError, match=r"No space left on device\. Free some space"):
            merged(source, tmp_path / "out")
    assert verify(DatasetFolder(str(tmp_path / "out"))).problems == []
    assert totals(DatasetFolder(str(tmp_path / "out"))).shards == 1
    merged(source, tmp_path / "out")
    assert rows_of(tmp_path / "out") == rows_of(source)


# What is refused


def cut(name: str) -> Callable[[Path], object]:
    return lambda out: (out / name).write_bytes((out / name).read_bytes()[:-1])


def flip(out: Path) -> None:
    file = out / "data" / "s1.parquet"
    data = file.read_bytes()
    file.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])


def other_columns(out: Path) -> None:
    file = out / "data" / "s1.parquet"
    table = pq.read_table(file)
    pq.write_table(table.append_column("mood", table["caption"]), file)
    sign(out, "s1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("data/s1.parquet"), r"data/s1\.parquet has \d+ bytes, \d+ are promised"),
        (lambda out: (out / "rejects" / "s1.parquet").unlink(), r"rejects/s1\.parquet is missing"),
        (lambda out: cut("shards/s1.json")(out) and cut("shards/s1.json")(out), r"shards/s1\.json is damaged"),
        (lambda out: (out / "config.json").write_text("{}"), "made with another configuration"),
        (flip, r"data/s1\.parquet cannot be read \(bytes 0 to \d+ have another checksum than promised\)"),
        (other_columns, r"columns differ from the record in mood\."),
        (lambda out: shutil.rmtree(out / "shards"), "has no finished shard yet"),
    ],
    ids=["cut", "missing", "manifest", "configuration", "flipped", "columns", "nothing"],
)
def test_a_damaged_source(source: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(source)
    with pytest.raises(UsageError, match=message):
        merged(source, tmp_path / "out")
    assert not (tmp_path / "out" / "shards").exists()


def test_where_it_may_not_go(source: Path, tmp_path: Path) -> None:
    for out in (source, source / "deeper", tmp_path, f"file://{source}/deeper", source / ".." / "source"):
        with pytest.raises(UsageError, match="lie in one another"):
            compact(DatasetFolder(str(source)), str(out))
    with pytest.raises(UsageError, match="name of the dataset folder is empty"):
        compact(DatasetFolder(str(source)), "")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    with pytest.raises(UsageError, match="is no dataset folder"):
        merged(source, tmp_path / "thesis")
    other = make_source(tmp_path / "other", shards=1)
    with pytest.raises(UsageError, match="compacted: None there"):
        merged(source, other)
    merged(source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"compacted: \{'shard_mb': 500, 'images': True\} there"):
        merged(source, tmp_path / "out", without_images=True)


def test_a_run_does_not_go_on_in_it(source: Path, tmp_path: Path) -> None:
    merged(source, tmp_path / "out")
    with pytest.raises(OtherConfigError) as caught:
        check_config(str(tmp_path / "out"), CONFIG)
    assert "was made by `dialog-gen compact`: a run goes on in its own folder only" in explained(caught.value)


@pytest.mark.parametrize("path", ["../x.parquet", "data/../x.parquet", "/etc/x.parquet", "data/x", "other/x.parquet"])
def test_a_manifest_that_points_elsewhere(source: Path, path: str) -> None:
    """It may have come from a stranger."""
    manifest = unsealed((source / "shards" / "s0.json").read_bytes())
    manifest["files"][0]["path"] = path
    (source / "shards" / "s0.json").write_text(json.dumps(manifest))
    assert DatasetFolder(str(source)).manifest("s0") is None


def test_a_location_or_an_open_folder(source: Path, tmp_path: Path) -> None:
    heard = Heard()
    compact(str(source), str(tmp_path / "out"), on_progress=heard)
    assert heard.ends() == {"merging shards": (5, 5)}
    compact(DatasetFolder(str(source)), tmp_path / "again")
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "out")
    with pytest.raises(UsageError, match="--shard-mb 0 is too small: give at least 1"):
        compact(source, tmp_path / "new", shard_mb=0)
    with pytest.raises(UsageError, match="nowhere does not exist"):
        compact(tmp_path / "nowhere", tmp_path / "out")
