"""Datasets of many shards at an object store: requests are made at a time, not one after the other, and not in vain."""

import uuid
from collections.abc import Generator
from pathlib import Path

import pytest
from helpers.rows import make_row, shard_of, write_shard
from helpers.slow_store import SlowStore

from dialog_gen.core.parallel import in_order
from dialog_gen.core.read_ahead import ReadAhead
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.publish.merge import merge

CONFIG = {"schema_version": 3, "model": "m"}
SHARDS = 60
NAMES = [f"s{number:03d}" for number in range(SHARDS)]


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """A dataset of `SHARDS` shards; from then on, each request takes 5 ms."""
    location = f"slow://{uuid.uuid4().hex}"
    with open_writer(f"{location}/a", CONFIG) as store:
        for number, name in enumerate(NAMES):
            write_shard(store, shard_of(name, 1), [make_row(number)])
    monkeypatch.setattr(SlowStore, "latency_s", 0.005)
    SlowStore.reset()
    yield f"{location}/a"
    SlowStore.store.clear()


def test_a_run_resumes(url: str) -> None:
    with open_writer(url, CONFIG) as store:
        SlowStore.reset()
        assert [bool(store.finished(shard_of(name, 1))) for name in NAMES] == [True] * SHARDS
        assert SlowStore.most_at_once >= 16
        assert SlowStore.requests["get"] == SHARDS


def test_in_any_order_and_what_is_missing(url: str) -> None:
    """What was not there when the folder was listed is not asked for."""
    order = [*NAMES[30:], *NAMES[:30], NAMES[7], NAMES[3], NAMES[50]]
    with open_writer(url, CONFIG) as store:
        store.remove("data/s050.parquet")
        store.remove("shards/s007.json")
        wanted = [name not in ("s007", "s050") for name in order]
        assert [store.is_complete(shard_of(name, 1)) for name in order] == wanted
        SlowStore.reset()
        assert not any(store.is_complete(shard_of(f"new{number}", 1)) for number in range(100))
        assert SlowStore.requests.total() == 0


def test_a_writer_sees_what_it_writes(url: str) -> None:
    with open_writer(url, CONFIG) as store:
        assert store.is_complete(shard_of("s000", 1))
        assert store.is_complete(shard_of("s001", 1))  # from now on, the next ones are read before
        write_shard(store, shard_of("s002", 1, fingerprint="g"), [make_row(900)])
        write_shard(store, shard_of("t", 1), [make_row(901)])
        store.drop("s003")
        assert not store.is_complete(shard_of("s002", 1))
        assert store.is_complete(shard_of("s002", 1, fingerprint="g"))
        assert store.is_complete(shard_of("t", 1))
        assert not store.is_complete(shard_of("s003", 1))
        assert store.is_complete(shard_of("s004", 1))


def test_reading_all(url: str, tmp_path: Path) -> None:
    for read, images in (
        (lambda: sum(manifest.images for manifest in DatasetFolder(url).manifests()), SHARDS),
        (lambda: totals(url).images, SHARDS),
        (lambda: verify(url).images, SHARDS),
        (lambda: merge([url], tmp_path / "out").images, SHARDS),
    ):
        SlowStore.reset()
        assert read() == images
        assert SlowStore.most_at_once >= 8
    assert verify(tmp_path / "out").problems == []
    assert [manifest.shard for manifest in DatasetFolder(url).manifests()] == NAMES


def test_damage_is_told_in_order(url: str) -> None:
    folder = DatasetFolder(url)
    for name in ("s040", "s010"):
        folder.fs.pipe_file(f"{folder.root}/shards/{name}.json", b"{")
    found = verify(url)
    assert [problem for problem in found.problems if "is damaged" in problem] == [
        "shards/s010.json is damaged",
        "shards/s040.json is damaged",
    ]


def test_leftovers_of_a_rewrite_go(url: str) -> None:
    """Whichever of the two files the manifest names."""
    folder = DatasetFolder(url)
    data = folder.read("data/s005.parquet")
    folder.fs.pipe_file(f"{folder.root}/data/s005.v2.parquet", data)
    folder.fs.pipe_file(f"{folder.root}/data/stranger.parquet", data)
    with open_writer(url, CONFIG) as store:
        store.remove_leftovers()
        assert not store.exists("data/s005.v2.parquet")
        assert store.exists("data/stranger.parquet")
        manifest = store.manifest("s006")
        assert manifest is not None
        rewritten = store.rewrite(manifest, lambda table: table)
        folder.fs.pipe_file(f"{folder.root}/data/s006.parquet", data)
        store.remove_leftovers()
        assert rewritten.files[0].path == "data/s006.v2.parquet"
        assert store.exists("data/s006.v2.parquet")
        assert not store.exists("data/s006.parquet")


def test_calls_in_order() -> None:
    def square(number: int) -> int:
        if number == 50:
            raise ValueError("fifty")
        return number * number

    for threads in (1, 4):
        found = in_order(square, range(1000), threads=threads)
        assert [next(found) for _ in range(50)] == [number * number for number in range(50)]
        with pytest.raises(ValueError, match="fifty"):
            next(found)
    started = list[int]()
    assert next(in_order(started.append, range(10**9), threads=3)) is None
    assert len(started) <= 12


def test_reading_ahead() -> None:
    asked = list[str]()

    def read(name: str) -> str:
        asked.append(name)
        return name.upper()

    ahead = ReadAhead(NAMES, read, threads=4)
    assert [ahead.get(name) for name in NAMES] == [name.upper() for name in NAMES]
    assert sorted(asked) == NAMES
    assert ("s007" in ahead, "s0070" in ahead, "" in ahead) == (True, False, False)
    asked.clear()
    assert [ahead.get(name) for name in ("s020", "s010", "s030")] == ["S020", "S010", "S030"]
    assert asked == ["s020", "s010", "s030"]
