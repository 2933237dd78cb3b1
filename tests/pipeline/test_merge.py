"""`merge`: datasets of one configuration become one, byte by byte; `compact` takes several, too."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers.cli import Cli
from helpers.crashes import crash_at
from helpers.engine import ScriptedEngine
from helpers.inputs import write_images
from helpers.rows import files_of, make_row, rows_of, shard_of, write_shard

import dialog_gen
from dialog_gen.cli.remedies import explained
from dialog_gen.core import files as files_module
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.errors import BeingWrittenError, EmptyDatasetError, OlderVersionError, OtherConfigError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.locks import lock_exclusively
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.dataset.writer import check_config, open_writer
from dialog_gen.engines.start import EngineSpec
from dialog_gen.publish.merge import merge

CONFIG: dict[str, Any] = {"schema_version": 3, "model": "m", "seed": 1, "shard_size": 5}
STATUSES = ("accepted", "accepted", "rejected", "accepted", "unreadable")
PATH = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path])


def make_dataset(out: Path, start: int, *names: str, rows: int = 5, **config: Any) -> Path:
    with open_writer(str(out), {**CONFIG, "images": f"/images/{out.name}", **config}) as store:
        for number, name in enumerate(names):
            first = start + rows * number
            made = [make_row(first + i, STATUSES[i % 5], url=f"https://example.com/{first + i}") for i in range(rows)]
            write_shard(store, shard_of(name, rows), made)
    return out


@pytest.fixture
def datasets(tmp_path: Path) -> list[Path]:
    """Three; a shard of the second has a name that the first has, and one of the third a name that a file has."""
    return [
        make_dataset(tmp_path / "a", 0, "s0", "s1"),
        make_dataset(tmp_path / "b", 100, "s1", "s2", shard_size=7, prefix_ids=True),
        make_dataset(tmp_path / "c", 200, "S0.v2", "s3"),
    ]


def sorted_rows(*folders: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        part: sorted(
            (row for folder in folders for row in rows_of(folder, part, volatile=True)), key=lambda row: row["image_id"]
        )
        for part in ("data", "rejects")
    }


def test_rows_and_bytes_stay(datasets: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = [files_of(folder) for folder in datasets]
    out = tmp_path / "out"
    summary = merge(datasets, out)
    assert [files_of(folder) for folder in datasets] == before
    assert sorted_rows(out) == sorted_rows(*datasets)
    stored = {name: data for name, data in files_of(out).items() if name.endswith(".parquet")}
    assert sorted(stored.values()) == sorted(
        data for files in before for name, data in files.items() if name.endswith(".parquet")
    )
    assert stored["data/s1-2.parquet"] == before[1]["data/s1.parquet"]
    assert DatasetFolder(str(out)).shards() == ["S0.v2-3", "s0", "s1", "s1-2", "s2", "s3"]
    verdict = verify(out)
    assert verdict.problems == []
    assert (verdict.images, verdict.accepted, verdict.rejected, verdict.unreadable) == (30, 18, 6, 6)
    assert (summary.images, summary.shards, summary.shards_already_done, summary.shards_renamed) == (30, 6, 0, 2)
    assert "s1 of" in caplog.text
    assert "becomes s1-2" in caplog.text
    assert DatasetFolder(str(out)).config() == {"schema_version": 3, "model": "m", "seed": 1, "merged": True}
    again = files_of(out)
    assert merge(datasets, out).shards_already_done == 6
    assert files_of(out) == again


def test_it_grows(datasets: list[Path], tmp_path: Path) -> None:
    """Further datasets may join, and shards that changed are copied again; nothing is removed or exchanged."""
    out = tmp_path / "out"
    merge(datasets[:2], out)
    inode = (out / "data" / "s0.parquet").stat().st_ino
    make_dataset(datasets[1], 300, "s9", shard_size=7, prefix_ids=True)
    assert merge(datasets, out).shards_already_done == 4
    assert (out / "data" / "s0.parquet").stat().st_ino == inode
    assert sorted_rows(out) == sorted_rows(*datasets)
    assert json.loads((out / "run.json").read_text())["dataset"]["images"] == 35
    there = files_of(out)
    for others in (datasets[:2], datasets[1:], [datasets[1], datasets[0], datasets[2]]):
        with pytest.raises(UsageError, match="name these first, in this order, or choose another --out"):
            merge(others, out)
    with open_writer(str(datasets[2]), DatasetFolder(str(datasets[2])).config()) as store:
        store.drop("s3")
    with pytest.raises(UsageError, match="has 1 shard that none of the datasets has, first s3"):
        merge(datasets, out)
    assert files_of(out) == there


def test_repair_copies_again(datasets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(datasets, out)
    whole = files_of(out)
    data = bytearray((out / "data" / "s1-2.parquet").read_bytes())
    data[100] ^= 1
    (out / "data" / "s1-2.parquet").write_bytes(data)
    (out / "config.json").write_text("{")
    (out / "shards" / "s3.json").unlink()
    summary = dialog_gen.repair(out)
    assert summary.problem is None
    assert summary.made == ["s1-2", "s3"]
    shutil.rmtree(out / "set-aside")
    assert {k: v for k, v in files_of(out).items() if k != "run.json"} == {
        k: v for k, v in whole.items() if k != "run.json"
    }
    (out / "shards" / "s3.json").unlink()
    assert any("5 images fewer" in problem for problem in verify(out).problems)
    with open_writer(str(datasets[0]), DatasetFolder(str(datasets[0])).config()) as store:
        write_shard(store, shard_of("s0", 5, fingerprint="new"), [make_row(900 + i) for i in range(5)])
    summary = dialog_gen.repair(out)
    assert "has changed since" in str(summary.problem)


def test_gates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = [make_dataset(tmp_path / name, 100 * number, name) for number, name in enumerate("abc")]
    for folder in folders[:2]:
        dialog_gen.gate(folder, "length,empty")
    out = tmp_path / "same"
    merge(folders[:2], out)
    assert caplog.messages == []
    assert verify(out).problems == []
    found = unsealed((out / "gates.json").read_bytes())
    assert found["pairs"] == 6
    assert found["gates"]["length"]["scored"] == 6
    assert sorted_rows(out) == sorted_rows(*folders[:2])
    # Gates that are applied to the result stay when the same merge runs again.
    dialog_gen.gate(out, "empty")
    gated = files_of(out)
    merge(folders[:2], out)
    assert files_of(out) == gated
    merge(folders, tmp_path / "mixed")
    assert "not all shards of" in caplog.text
    assert not (tmp_path / "mixed" / "gates.json").exists()
    assert verify(tmp_path / "mixed").problems == []
    dialog_gen.gate(tmp_path / "mixed", "length,empty")
    assert verify(tmp_path / "mixed").problems == []


def test_a_run_does_not_go_on_in_it(datasets: list[Path], tmp_path: Path) -> None:
    merge(datasets, tmp_path / "out")
    with pytest.raises(OtherConfigError) as caught:
        check_config(str(tmp_path / "out"), DatasetFolder(str(datasets[0])).config())
    assert "was made by `dialog-gen merge`: a run goes on in its own folder only" in explained(caught.value)


def test_runs_of_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli) -> None:
    """Of real runs over different images; the result is exported, upgraded, read."""
    monkeypatch.setattr(EngineSpec, "start", lambda spec, log: ScriptedEngine().start(log))
    monkeypatch.chdir(tmp_path)
    for name, count in (("x", 6), ("y", 9)):
        write_images(Path(name), count)
        for file in Path(name).iterdir():
            file.rename(file.with_name(f"{name}{file.name}"))
        dialog_gen.generate(model="shapes-llava", images=name, out=f"out-{name}", shard_size=4)
    ended = dialog_gen_cli("merge", "out-x", "out-y", "--out", "d", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["images"] == 15
    assert dialog_gen_cli("verify", "d").code == 0
    assert "nothing to do" in dialog_gen_cli("upgrade", "d").out
    assert dialog_gen_cli("status", "d").code == 0
    assert dialog_gen_cli("report", "d", "--out", "d.html").code == 0
    assert dialog_gen_cli("export", "d", "--to", "texts", "--out", "t").code == 0
    assert "nothing to repair" in dialog_gen_cli("repair", "d").out
    assert "--out d" in dialog_gen_cli("merge", "out-x", "--out", "out-x").mistake.replace("out-x", "d")


def test_compact_takes_several(datasets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = dialog_gen.compact(datasets, out)
    assert (summary.images, summary.shards, summary.source_shards) == (30, 1, 6)
    for part in ("data", "rejects"):
        assert rows_of(out, part) == [row for folder in datasets for row in rows_of(folder, part)]
    assert verify(out).problems == []
    assert dialog_gen.compact(datasets, out).shards_already_done == 1
    (out / "data" / "part-00000.parquet").write_bytes(b"")
    assert dialog_gen.repair(out).problem is None
    assert sorted_rows(out) == sorted_rows(*datasets)
    dialog_gen.compact(datasets[0], tmp_path / "bare", without_images=True)
    dialog_gen.compact(datasets[1], tmp_path / "full")
    with pytest.raises(UsageError, match="has its images, but not all other datasets have: add --without-images"):
        dialog_gen.compact([tmp_path / "bare", tmp_path / "full"], tmp_path / "no")


# Object stores


def test_urls(datasets: list[Path], tmp_path: Path) -> None:
    """From a bucket, to a bucket, and both."""
    bucket = f"memory://{uuid.uuid4().hex}"
    merge(datasets[:1], f"{bucket}/one")
    merge([f"{bucket}/one", *datasets[1:]], f"{bucket}/all")
    assert verify(f"{bucket}/all").problems == []
    merge([f"{bucket}/all"], tmp_path / "back")
    assert sorted_rows(tmp_path / "back") == sorted_rows(*datasets)
    with pytest.raises(UsageError, match="lie in one another"):
        merge([f"{bucket}/one"], f"{bucket}/one/deeper")
    fs = fsspec.filesystem("memory")
    root = "/" + bucket.removeprefix("memory://")
    path = f"{root}/one/data/s0.parquet"
    content = bytearray(fs.cat_file(path))
    content[60] ^= 1
    fs.pipe_file(path, bytes(content))
    with pytest.raises(UsageError, match=r"data/s0\.parquet cannot be read"):
        merge([f"{bucket}/one"], tmp_path / "damaged")


# What is refused


def refused(datasets: list[Any], out: Path, match: str, error: type[DialogGenError] = UsageError) -> None:
    with pytest.raises(error, match=match) as caught:
        merge(datasets, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_other_configurations(datasets: list[Path], tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", 900, "x", seed=2, temperature=0.5)
    refused(
        [*datasets, other], tmp_path / "out", r"a and .*other were made with .*\(seed: 1 and 2; temperature: None and"
    )
    with pytest.raises(UsageError, match="seed: 1 and 2"):
        dialog_gen.compact([*datasets, other], tmp_path / "out")


@pytest.mark.parametrize("joined", [merge, dialog_gen.compact])
def test_an_id_in_two_datasets(datasets: list[Path], tmp_path: Path, joined: Callable[..., object]) -> None:
    make_dataset(tmp_path / "d", 102, "q")
    with pytest.raises(
        UsageError, match=r"image_id 'image 102' \(and 4 others\) stands in .*b and in .*/d: ids must be"
    ):
        joined([*datasets, tmp_path / "d"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_joined(datasets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused([datasets[0], datasets[1], f"{datasets[0]}/"], out, "is given twice")
    (tmp_path / "link").symlink_to(datasets[0])
    refused([datasets[0], tmp_path / "link"], out, "is given twice, as .*a too")
    refused([], out, "no dataset is given")
    refused([tmp_path / "nowhere"], out, "does not exist")
    refused([*datasets, make_dataset(tmp_path / "empty", 0)], out, "empty has no finished shard", EmptyDatasetError)
    refused([make_dataset(tmp_path / "old", 0, schema_version=3)], tmp_path / "old" / "in", "lie in one another")
    with lock_exclusively(DatasetFolder(str(datasets[1]))):
        refused(list(datasets), out, "a run is writing to .*b", BeingWrittenError)
    shutil.copytree(Path(__file__).parents[1] / "data" / "v2", tmp_path / "v2")
    refused([tmp_path / "v2"], out, "has version 2 of the record", OlderVersionError)


def test_an_out_with_something_else(datasets: list[Path], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    with pytest.raises(UsageError, match="is no dataset folder"):
        merge(datasets, tmp_path / "thesis")
    before = files_of(datasets[2])
    with pytest.raises(OtherConfigError):
        merge(datasets[:2], datasets[2])
    assert files_of(datasets[2]) == before


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[60] ^= 1
    file.write_bytes(data)


def test_damage_is_found_while_copying(datasets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes that nothing reads before: the first check reads the ids only."""
    file = datasets[1] / "data" / "s2.parquet"
    good = file.read_bytes()
    monkeypatch.setattr("dialog_gen.publish.merge.check_unique_ids", lambda _, shards: [*shards] and flip(file))
    with pytest.raises(UsageError, match=r"b/data/s2\.parquet cannot be read \(data/s2\.parquet has another checksum"):
        merge(datasets, tmp_path / "out")
    assert verify(tmp_path / "out").problems == []
    assert totals(tmp_path / "out").shards == 3
    assert not (tmp_path / "out" / ".tmp").exists()
    file.write_bytes(good)
    monkeypatch.undo()
    assert merge(datasets, tmp_path / "out").shards_already_done == 3
    assert sorted_rows(tmp_path / "out") == sorted_rows(*datasets)


def test_removed_shards_are_damage(datasets: list[Path], tmp_path: Path) -> None:
    with open_writer(str(datasets[0]), DatasetFolder(str(datasets[0])).config()) as store:
        store.put_json("run.json", {"dataset": {"images": 10}})
    (datasets[0] / "shards" / "s1.json").unlink()
    refused(list(datasets), tmp_path / "out", "a: 5 images fewer than the last run counted")


def test_a_full_disk(datasets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = files_module.fsync, [6]

    def fsync(path: Path) -> None:
        left[0] -= path.suffix == ".parquet"
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr("dialog_gen.dataset.copying.fsync", fsync)
        with pytest.raises(DialogGenError, match=r"cannot write .*out: No space left on device\. Free some space"):
            merge(datasets, tmp_path / "out")
    assert verify(tmp_path / "out").problems == []
    assert totals(tmp_path / "out").shards == 2
    merge(datasets, tmp_path / "out")
    assert sorted_rows(tmp_path / "out") == sorted_rows(*datasets)


# Kills


def crash_everywhere(datasets: list[str], outs: str) -> None:
    """One folder for each file at whose opening, renaming or removing the process ends at once."""
    os.fsync = lambda descriptor: None
    merge(datasets, f"{outs}/0")
    for crash in range(1, 1000):
        out = f"{outs}/{crash}"
        if (child := os.fork()) == 0:
            sys.addaudithook(crash_at(crash, out))
            merge(datasets, out)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


@pytest.mark.slow
def test_a_kill_at_any_moment_is_made_good_by_the_same_command(tmp_path: Path) -> None:
    datasets = [str(make_dataset(tmp_path / name, 100 * number, "s", rows=5)) for number, name in enumerate("ab")]
    (tmp_path / "outs").mkdir()
    code = f"import test_merge as t; t.crash_everywhere({datasets!r}, {str(tmp_path / 'outs')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": PATH})
    outs = sorted((tmp_path / "outs").iterdir(), key=lambda out: int(out.name))
    undisturbed = without_time(outs.pop(0))
    assert without_time(outs.pop()) == undisturbed
    assert len(outs) > 20
    for out in outs:
        merge(datasets, out)
        assert without_time(out) == undisturbed


def without_time(out: Path) -> dict[str, bytes]:
    files = files_of(out)
    files["run.json"] = json.dumps({**unsealed(files["run.json"]), "finished_at": None}).encode()
    return files


@pytest.mark.slow
def test_a_real_kill(datasets: list[Path], tmp_path: Path) -> None:
    """By the system, while it copies: the rerun gives the undisturbed result."""
    code = """
import sys, time
from dialog_gen.publish import merge as module
real = module.copy_shard
def slowly(*arguments):
    done = real(*arguments)
    print("one", flush=True)
    time.sleep(60)
    return done
module.copy_shard = slowly
module.merge(sys.argv[2:], sys.argv[1])
"""
    out = tmp_path / "out"
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(out), *map(str, datasets)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH},
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "one\n"
    time.sleep(0.1)
    started.kill()
    started.wait()
    started.stdout.close()
    assert merge(datasets, out).shards_already_done == 1
    assert sorted_rows(out) == sorted_rows(*datasets)
    assert verify(out).problems == []
