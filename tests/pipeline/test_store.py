import errno
import gc
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pyarrow.parquet as pq
import pytest
from helpers.crashes import crash_at
from helpers.rows import files_of, make_row, rows_of, shard_of, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset import shard_writer as store_module
from dialog_gen.dataset.errors import OtherConfigError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.shard_writer import ShardWriter
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import check_config, open_writer

CONFIG: dict[str, Any] = {"model": "m", "seed": 1}
PATH = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path])
STATUSES = ("accepted", "rejected", "unreadable")


def make_dataset(out: Path, *counts: int) -> dict[str, bytes]:
    """Complete shards s0, s1, ... of so many accepted rows; returns the files."""
    with open_writer(str(out), CONFIG) as store:
        for number, count in enumerate(counts):
            rows = [make_row(1000 * number + i) for i in range(count)]
            write_shard(store, shard_of(f"s{number}", count), rows)
    return files_of(out)


def is_complete(out: Path, count: int = 3, **shard: Any) -> bool:
    with open_writer(str(out), CONFIG) as store:
        return store.is_complete(shard_of("s0", count, **shard))


# Shards


@settings(max_examples=50)
@given(st.lists(st.sampled_from(STATUSES), min_size=1, max_size=14), st.randoms(use_true_random=False))
def test_rows_stand_in_the_order_of_the_input(statuses: list[str], random: Any) -> None:
    order = random.sample(range(len(statuses)), len(statuses))
    rows = [make_row(number, status) for number, status in enumerate(statuses)]
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(store_module, "ROWS_PER_GROUP", 3):
        out = Path(folder)
        with open_writer(folder, CONFIG) as store:
            manifest = write_shard(store, shard_of("s", len(rows)), rows, order=order)
        for part, wanted in (
            ("data", [row for row in rows if "texts" in row]),
            ("rejects", [row for row in rows if "status" in row]),
        ):
            found = rows_of(out, part, volatile=True)
            assert [row["image_id"] for row in found] == [row["image_id"] for row in wanted]
            assert found == wanted
            groups = [pq.ParquetFile(file).metadata for file in (out / part).glob("*")]
            sizes = [meta.row_group(g).num_rows for meta in groups for g in range(meta.num_row_groups)]
            assert sizes == [3] * (len(wanted) // 3) + ([len(wanted) % 3] if len(wanted) % 3 else [])
    assert (manifest.accepted, manifest.rejected, manifest.unreadable) == tuple(map(statuses.count, STATUSES))
    assert (manifest.images, manifest.output_tokens) == (len(rows), 2 * len(rows))


def test_the_manifest_tells_what_the_files_are(tmp_path: Path) -> None:
    rows = [make_row(i) for i in range(150)] + [
        make_row(150, "rejected"),
        make_row(151, "unreadable"),
        make_row(152, "rejected", reason="empty"),
    ]
    with open_writer(str(tmp_path), CONFIG) as store:
        manifest = write_shard(store, shard_of("s", 153, fingerprint="abc"), rows)
    assert manifest == DatasetFolder(str(tmp_path)).manifest("s")
    assert manifest.input_fingerprint == "abc"
    assert manifest.reasons == {"rejected": {"empty": 1, "too_few_pairs": 1}, "unreadable": {"truncated": 1}}
    assert [(entry.path, entry.rows) for entry in manifest.files] == [("data/s.parquet", 150), ("rejects/s.parquet", 3)]
    for entry in manifest.files:
        data = (tmp_path / entry.path).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    metadata = pq.ParquetFile(tmp_path / "data" / "s.parquet").metadata
    assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == [100, 50]
    assert set(files_of(tmp_path)) == {
        *("config.json", "data/s.parquet", "rejects/s.parquet", "shards/s.json", "README.md")
    }


def test_a_shard_without_rows_of_a_kind_has_no_file_of_it_any_more(tmp_path: Path) -> None:
    for status, there, gone in (("rejected", "rejects", "data"), ("accepted", "data", "rejects")):
        with open_writer(str(tmp_path), CONFIG) as store:
            write_shard(store, shard_of("s", 1), [make_row(0, status)])
        assert ((tmp_path / there / "s.parquet").exists(), (tmp_path / gone / "s.parquet").exists()) == (True, False)
        assert verify(DatasetFolder(str(tmp_path))).problems == []


def test_a_shard_that_lacks_a_row_is_not_committed(tmp_path: Path) -> None:
    with open_writer(str(tmp_path), CONFIG) as store:
        writer = ShardWriter(store.staging(), shard_of("s", 3))
        writer.add(0, make_row(0), 1)
        writer.add(2, make_row(2), 1)
        with pytest.raises(ValueError, match="s: 1 of 3 rows"):
            writer.finish()
    assert set(files_of(tmp_path)) == {"config.json"}


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "a", 120, 3) == make_dataset(tmp_path / "b", 120, 3)


# Crashes


def test_a_file_is_whole_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def fsync(descriptor: int) -> None:
        events.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path).as_posix())

    def replace(self: Path, target: Path) -> None:
        events.append(f"name {target.relative_to(tmp_path).as_posix()}")
        self.rename(target)

    with open_writer(str(tmp_path), CONFIG) as store:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        write_shard(store, shard_of("s", 2), [make_row(0), make_row(1, "rejected")])
    assert events == [
        *("sync .tmp/data-s.parquet", "sync .tmp/rejects-s.parquet"),
        *("name data/s.parquet", "sync data", "name rejects/s.parquet", "sync rejects"),
        *("sync .tmp/shards-s.json", "name shards/s.json", "sync shards"),
        *("sync .tmp/README.md", "name README.md", "sync ."),
    ]


def redo(out: str) -> None:
    """Makes s0 anew, of other input, and adds s1."""
    with open_writer(out, CONFIG) as store:
        store.staging().engine_log(None)
        for name in ("s0", "s1"):
            if not store.is_complete(shard := shard_of(name, 4, fingerprint="new")):
                rows = [make_row(i, STATUSES[i % 3], image_id=f"{name}/{i}") for i in range(4)]
                write_shard(store, shard, rows)


def crash_everywhere(before: str, outs: str) -> None:
    """Leaves in `outs`/K what is there when `redo` ends, without a last word, at the K-th file it touches."""
    os.fsync = lambda descriptor: None  # as in the tests
    redo(f"{outs}/0")  # what is imported at first use is imported once
    for crash in itertools.count(1):
        out = f"{outs}/{crash}"
        shutil.copytree(before, out)
        if (child := os.fork()) == 0:
            sys.addaudithook(crash_at(crash, out))
            redo(out)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


def test_a_crash_at_any_moment_is_made_good_by_the_next_run(tmp_path: Path) -> None:
    make_dataset(tmp_path / "before", 2)
    (tmp_path / "outs").mkdir()
    code = f"import test_store; test_store.crash_everywhere({str(tmp_path / 'before')!r}, {str(tmp_path / 'outs')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": PATH})
    outs = sorted((tmp_path / "outs").iterdir(), key=lambda out: int(out.name))
    undisturbed = files_of(outs.pop(0))
    assert files_of(outs.pop()) == undisturbed
    assert len(outs) > 20
    temporary = 0
    for out in outs:
        names = set(files_of(out))
        temporary += any(name.startswith(".tmp/") for name in names)
        # Nothing half done counts as done; what is not done at all is no damage.
        problems = verify(DatasetFolder(str(out))).problems
        assert all("belongs to no finished shard" in problem for problem in problems), (out, problems)
        redo(str(out))
        assert files_of(out) == undisturbed
    assert temporary > 5


def test_what_a_killed_run_left_is_gone_before_the_next_begins(tmp_path: Path) -> None:
    (tmp_path / ".tmp" / "folder").mkdir(parents=True)
    (tmp_path / ".tmp" / "data-s.parquet").touch()
    with open_writer(str(tmp_path), CONFIG) as store:
        assert list(store.tmp.iterdir()) == []
    assert list(files_of(tmp_path)) == ["config.json"]


# Who may write


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    attempt = (
        f"from dialog_gen.dataset.writer import open_writer\nwith open_writer({str(tmp_path)!r}, {CONFIG}): print('in')"
    )
    command = [sys.executable, "-c", attempt]
    environment = {**os.environ, "PYTHONPATH": PATH}
    with open_writer(str(tmp_path), CONFIG) as store:
        part = store.tmp / "mine"
        part.touch()
        with pytest.raises(UsageError, match="another run is writing"), open_writer(str(tmp_path), CONFIG):
            pass
        other = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (other.returncode, other.stdout) == (1, "")
        assert "FolderLockedError: another run is writing" in other.stderr
        assert part.exists()
        assert DatasetFolder.existing(str(tmp_path)).config() == CONFIG  # reading is free
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "in\n"
    assert not (tmp_path / ".tmp").exists()


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    files = make_dataset(tmp_path, 1)
    for open_it in (check_config, lambda *arguments: open_writer(*arguments).__enter__()):
        with pytest.raises(UsageError) as caught:
            open_it(str(tmp_path), {"model": "other", "seed": 1, "dtype": "float32"})
        assert "model: 'm' there, 'other' now; dtype: None there, 'float32' now)" in str(caught.value)
        assert "seed" not in str(caught.value).partition(")")[0]
    assert files_of(tmp_path) == files


def test_as_long_as_no_shard_is_finished_the_configuration_may_change(tmp_path: Path) -> None:
    other = {"model": "other"}
    with open_writer(str(tmp_path), CONFIG) as store:
        ShardWriter(store.staging(), shard_of("s", 2)).add(0, make_row(0), 1)
    check_config(str(tmp_path), other)
    with open_writer(str(tmp_path), other) as store:
        write_shard(store, shard_of("s0", 1), [make_row(0)])
    assert DatasetFolder(str(tmp_path)).config() == other
    with pytest.raises(UsageError, match="another configuration"):
        check_config(str(tmp_path), CONFIG)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("all of it")
    with pytest.raises(UsageError, match=r"it holds 'thesis\.doc'"), open_writer(str(tmp_path), CONFIG):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.doc"]


@pytest.mark.parametrize(("exists", "message"), [(True, "has no config.json"), (False, "does not exist")])
def test_no_dataset_to_read(tmp_path: Path, exists: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DatasetFolder.existing(str(tmp_path if exists else tmp_path / "no"))


@pytest.mark.parametrize("content", ['{"model"', "[]", "3", ""])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    make_dataset(tmp_path, 1)
    (tmp_path / "config.json").write_text(content)
    other = {**CONFIG, "seed": 99}
    with pytest.raises(UsageError, match=r"config\.json is damaged"), open_writer(str(tmp_path), other):
        pass
    # All shards say that it was this one.
    with open_writer(str(tmp_path), CONFIG):
        pass
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("content", [b'{"model"', b"\xe3", b""])
def test_a_damaged_configuration_without_any_shard_blocks_no_run(tmp_path: Path, content: bytes) -> None:
    with open_writer(str(tmp_path), CONFIG):
        pass
    (tmp_path / "config.json").write_bytes(content)
    check_config(str(tmp_path), CONFIG)
    with open_writer(str(tmp_path), CONFIG):
        pass
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_an_unknown_protocol_of_a_url() -> None:
    with pytest.raises(UsageError, match="cannot open nosuch://x"):
        DatasetFolder("nosuch://x")


# What is done


@pytest.mark.parametrize(
    ("count", "fingerprint", "complete"),
    [(3, "f", True), (2, "f", True), (4, "f", False), (3, "other", False), (2, "other", False)],
    ids=["same", "smaller limit", "larger limit", "other input", "other input, smaller limit"],
)
def test_a_shard_is_done_if_it_has_all_rows_of_this_input(
    tmp_path: Path, count: int, fingerprint: str, complete: bool
) -> None:
    make_dataset(tmp_path, 3)
    assert is_complete(tmp_path, count, fingerprint=fingerprint) is complete


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def edit_manifest(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_sha256": "0"}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data/s0.parquet", Path.unlink),
        ("data/s0.parquet", truncate),
        ("data/s0.parquet", extend),
        ("shards/s0.json", Path.unlink),
        ("shards/s0.json", truncate),
        ("shards/s0.json", edit_manifest),
        ("shards/s0.json", lambda path: path.write_bytes(b"")),
    ],
)
def test_a_damaged_shard_is_not_done_and_is_made_anew(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    files = make_dataset(tmp_path, 3, 2)
    damage(tmp_path / name)
    if damage is truncate and name.startswith("shards"):
        damage(tmp_path / name)  # the first byte was a line feed
    assert not is_complete(tmp_path)
    with open_writer(str(tmp_path), CONFIG) as store:
        assert store.is_complete(shard_of("s1", 2))
    assert make_dataset(tmp_path, 3) == files


# Disks that refuse


@contextmanager
def without_privileges() -> Generator[None]:
    """Root may write anywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path, which is root's alone
        out = Path(folder)
        files = make_dataset(out, 2)
        folders = [out, out / "data", out / "shards"]
        for path in folders:
            path.chmod(0o555)
        for place in (folder, f"{folder}/new"):
            with without_privileges(), pytest.raises(DialogGenError) as caught, open_writer(place, CONFIG):
                pass
            assert caught.value.exit_code == 2
            assert f"cannot write {place}: Permission denied. Check the permissions" in str(caught.value)
        for path in folders:
            path.chmod(0o755)
        assert files_of(out) == files


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with (
            pytest.raises(DialogGenError, match=r"cannot write .*Choose another --out") as caught,
            open_writer(str(tmp_path / place), CONFIG),
        ):
            pass
        assert caught.value.exit_code == 2


def refuse(number: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("target", "name", "error", "hint"),
    [
        (pq.ParquetWriter, "write_table", errno.ENOSPC, "No space left on device. Free some space and run again"),
        (pq.ParquetWriter, "close", errno.EDQUOT, "quota exceeded. Free some of your quota"),
        (os, "fsync", errno.EIO, "Input/output error. Check the disk and run again"),
        (Path, "replace", errno.EROFS, "Read-only file system. Choose another --out"),
        (Path, "mkdir", errno.EACCES, "Permission denied. Check the permissions"),
        (Path, "write_bytes", errno.ENOSPC, "No space left"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else "",
)
def test_what_a_disk_refuses_is_told_and_finished_shards_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, error: int, hint: str
) -> None:
    files = make_dataset(tmp_path, 2)
    with open_writer(str(tmp_path), CONFIG) as store, monkeypatch.context() as patch:
        patch.setattr(target, name, refuse(error))
        with pytest.raises(DialogGenError) as caught:
            write_shard(store, shard_of("s1", 1), [make_row(1)])
    assert caught.value.exit_code == 2
    assert not isinstance(caught.value, UsageError)
    assert f"cannot write {tmp_path}: " in str(caught.value)
    assert hint in str(caught.value)
    assert str(caught.value).endswith("; finished shards are kept.")
    assert {name: data for name, data in files_of(tmp_path).items() if "s1" not in name} == files
    assert is_complete(tmp_path, 2)


def test_a_file_that_is_given_up_prints_nothing_when_it_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with open_writer(str(tmp_path), CONFIG) as store, monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "close", refuse(errno.EIO))
        with pytest.raises(DialogGenError):
            write_shard(store, shard_of("s1", 1), [make_row(1)])
        gc.collect()
    assert said == []


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_writer(str(out), CONFIG) as store:
        shutil.rmtree(out)
        with pytest.raises(DialogGenError, match=r"cannot write .*out: .*No such file.*Choose"):
            write_shard(store, shard_of("s", 1), [make_row(0)])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One with room for 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    out = small_disk / "out"
    done: list[str] = []

    def fill() -> None:
        for number in range(10):
            with open_writer(str(out), CONFIG) as store:
                row = make_row(number, images=[{"bytes": os.urandom(50_000), "path": "x"}])
                done.append(write_shard(store, shard_of(f"s{number}", 1), [row]).shard)

    with pytest.raises(DialogGenError, match=r"No space left on device.*Free some space") as caught:
        fill()
    assert caught.value.exit_code == 2
    assert 2 <= len(done) < 6
    assert not (out / ".tmp").exists()
    folder = DatasetFolder.existing(str(out))
    assert folder.shards() == done
    for manifest in folder.manifests():
        (entry,) = manifest.files
        assert hashlib.sha256(folder.read(entry.path)).hexdigest() == entry.sha256


# Object stores


@pytest.fixture
def bucket() -> Iterator[str]:
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    fs = fsspec.filesystem("memory")
    if fs.exists(url):
        fs.rm(url, recursive=True)


def test_a_store_at_a_url(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    put, order = fs.put_file, list[str]()
    monkeypatch.setattr(type(fs), "put_file", lambda self, source, to: (order.append(to), put(source, to)))
    rows = [make_row(i, STATUSES[i % 3]) for i in range(5)]
    with open_writer(bucket, CONFIG) as store:
        shard = shard_of("s", 5)
        assert not store.is_complete(shard)
        write_shard(store, shard, rows, order=[4, 2, 0, 1, 3])
        assert store.is_complete(shard)
        tmp = store.tmp
        assert store.staging().engine_log(None).parent == tmp
    assert not tmp.exists()
    root = "/" + bucket.removeprefix("memory://")
    names = ("config.json", "data/s.parquet", "rejects/s.parquet", "shards/s.json", "README.md")
    assert order == [f"{root}/{name}" for name in names]
    assert sorted(fs.find(root)) == sorted(order)
    verdict = verify(DatasetFolder.existing(bucket))
    assert (verdict.problems, verdict.images, verdict.accepted) == ([], 5, 2)
    with open_writer(bucket, CONFIG) as store:
        assert store.is_complete(shard_of("s", 5))
        assert not store.is_complete(shard_of("s", 6))
    with pytest.raises(UsageError, match="seed: 1 there, 2 now"), open_writer(bucket, CONFIG | {"seed": 2}):
        pass


def test_a_failed_upload_leaves_the_shard_undone(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    put = fs.put_file

    def refuse_rejects(self: Any, source: str, to: str) -> None:
        if "/rejects/" in to:
            raise OSError("the bucket is sealed")  # as object stores do, without a number
        put(source, to)

    rows = [make_row(i, status) for i, status in enumerate(STATUSES)]
    with open_writer(bucket, CONFIG) as store, monkeypatch.context() as patch:
        patch.setattr(type(fs), "put_file", refuse_rejects)
        with pytest.raises(DialogGenError, match=f"cannot write {bucket}: the bucket is sealed"):
            write_shard(store, shard_of("s", 3), rows)
        assert not store.is_complete(shard_of("s", 3))
    with open_writer(bucket, CONFIG) as store:
        write_shard(store, shard_of("s", 3), rows)
    assert verify(DatasetFolder(bucket)).problems == []


# Several writers


SHARED = """
import sys, time
from helpers.rows import make_row, shard_of, write_shard
from dialog_gen.dataset.writer import open_writer
out, crash = sys.argv[1:]
made = []
with open_writer(out, {"model": "m", "seed": 1}, shared=True) as writer:
    print("in", flush=True)
    sys.stdin.readline()
    for number in range(12):
        unit = shard_of(f"s{number:02}", 2)
        if not writer.claim(unit):
            continue
        rows = [make_row(2 * number + k) for k in range(2)]
        if crash == unit.name:
            (writer.tmp / "half").touch()
            print("claimed", flush=True)
            time.sleep(600)
        time.sleep(0.02)
        write_shard(writer, unit, rows)
        made.append(unit.name)
print(*made, flush=True)
"""


class Other:
    """A process that writes to `out` together with others, from `go` on; it stops at the shard `crash`."""

    def __init__(self, out: Path, crash: str = "") -> None:
        command = [sys.executable, "-c", SHARED, str(out), crash]
        environment = {**os.environ, "PYTHONPATH": PATH}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        assert self.said() == "in"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def made(self) -> list[str]:
        """The shards that it made, when it has ended."""
        made = self.said().split()
        assert self.process.wait() == 0
        return made


def test_several_writers_make_each_shard_once(tmp_path: Path) -> None:
    with open_writer(str(tmp_path / "alone"), CONFIG) as store:
        for number in range(12):
            write_shard(store, shard_of(f"s{number:02}", 2), [make_row(2 * number + k) for k in range(2)])
    out = tmp_path / "out"
    others = [Other(out) for _ in range(3)]
    for other in others:
        other.go()
    made = [other.made() for other in others]
    assert sorted(name for names in made for name in names) == [f"s{number:02}" for number in range(12)]
    assert sum(map(bool, made)) > 1
    assert files_of(out) == files_of(tmp_path / "alone")
    assert not (out / ".tmp").exists()
    assert verify(DatasetFolder(str(out))).problems == []


def test_a_killed_writer_gives_its_shard_back(tmp_path: Path) -> None:
    dies, lives = Other(tmp_path, crash="s05"), Other(tmp_path)
    dies.go()
    assert dies.said() == "claimed"
    unit = shard_of("s05", 2)
    with open_writer(str(tmp_path), CONFIG, shared=True) as store:
        assert not store.claim(unit)
        leftovers = list(tmp_path.glob(".tmp/*/half"))
        dies.process.kill()
        dies.process.wait()
        assert len(leftovers) == 1
        assert leftovers[0].exists()
        assert store.claim(unit)
    lives.go()
    assert lives.made() == [f"s{number:02}" for number in range(5, 12)]
    # The one who lived was there before the other died: the next one clears up.
    with open_writer(str(tmp_path), CONFIG, shared=True):
        assert not leftovers[0].exists()
    assert not (tmp_path / ".tmp").exists()
    assert len(DatasetFolder(str(tmp_path)).shards()) == 12


def test_one_who_wants_the_folder_alone_waits_for_all_others(tmp_path: Path) -> None:
    other = Other(tmp_path)
    with pytest.raises(UsageError, match="another run is writing"), open_writer(str(tmp_path), CONFIG):
        pass
    with open_writer(str(tmp_path), CONFIG, shared=True) as store:
        assert not (store.tmp / "mine").exists()
    other.go()
    assert len(other.made()) == 12
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "data-s00.parquet").touch()  # of one who was killed
    with open_writer(str(tmp_path), CONFIG, shared=True):
        assert not (tmp_path / ".tmp" / "data-s00.parquet").exists()
    with open_writer(str(tmp_path), CONFIG) as store:
        assert not store.claim(shard_of("s00", 2))
        with pytest.raises(UsageError, match="another run is writing"), open_writer(str(tmp_path), CONFIG, shared=True):
            pass
    assert not (tmp_path / ".tmp").exists()


def test_writers_that_share_a_folder_agree_on_the_configuration(tmp_path: Path) -> None:
    with open_writer(str(tmp_path), CONFIG, shared=True):
        # There is no shard yet; alone it might be changed.
        with pytest.raises(OtherConfigError), open_writer(str(tmp_path), {"model": "x"}, shared=True):
            pass
        assert DatasetFolder(str(tmp_path)).config() == CONFIG
        with open_writer(str(tmp_path), CONFIG, shared=True) as second:
            assert second.claim(shard_of("a", 1))
    with open_writer(str(tmp_path), {"model": "x"}, shared=True):
        pass
    assert DatasetFolder(str(tmp_path)).config() == {"model": "x"}
    with pytest.raises(UsageError, match="is not on local disk"), open_writer("memory://x", CONFIG, shared=True):
        pass


def test_a_claim_ends_with_its_writer_and_with_its_shard(tmp_path: Path) -> None:
    unit, config = shard_of("a", 1), CONFIG
    with open_writer(str(tmp_path), config, shared=True) as one, open_writer(str(tmp_path), config, shared=True) as two:
        assert one.claim(unit)
        assert one.claim(unit)
        assert not two.claim(unit)
        write_shard(one, unit, [make_row(0)])
        assert not two.claim(unit)  # it is complete
        assert two.claim(shard_of("a", 1, fingerprint="changed"))
        with open_writer(str(tmp_path), config, shared=True) as three:
            assert three.claim(shard_of("b", 1))
        assert one.claim(shard_of("b", 1))
