"""`--executor ray` of the commands that go over shards: the same results as in this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.ray_clusters import ray_cluster
from helpers.ray_functions import DiesOnce, dies, no_dataset, square
from helpers.rows import files_of, make_row, shard_of, write_shard
from helpers.training import scene_row, write_dialogues, write_tiny_clip

import dialog_gen
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.mapping import Map
from dialog_gen.dataset.errors import NoDatasetError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.base import Where
from dialog_train.data.vectors import VectorStore, embed_dataset

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
CONFIG: dict[str, Any] = {"schema_version": 3, "model": "m", "engine": "e"}
STATUSES = ("accepted", "accepted", "rejected", "accepted", "unreadable")


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, Any]]:
    with ray_cluster(nodes=2) as cluster:
        yield {"executor": "ray", "ray_address": cluster.address}


@pytest.fixture
def on_ray(ray: dict[str, Any]) -> Map:
    return Where(**ray).map()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    with open_writer(str(tmp_path / "dataset"), CONFIG) as store:
        for number in range(4):
            rows = [make_row(100 * number + i, STATUSES[i % 5]) for i in range(30)]
            write_shard(store, shard_of(f"s{number}", len(rows)), rows)
        store.put_json("run.json", {"run": 1})
    return tmp_path / "dataset"


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_results_come_in_the_order_of_the_items(on_ray: Map) -> None:
    heard: list[float] = []
    assert list(on_ray(square, range(50), heard.append)) == [(i, i * i) for i in range(50)]
    assert sum(heard) == sum(range(50))


def test_an_error_comes_as_it_was_raised(on_ray: Map) -> None:
    with pytest.raises(NoDatasetError) as raised:
        list(on_ray(no_dataset, range(3)))
    assert str(raised.value) == str(NoDatasetError("there", exists=True))


def test_an_item_whose_process_dies_goes_to_another(on_ray: Map, tmp_path: Path) -> None:
    assert list(on_ray(DiesOnce(tmp_path), range(5))) == [(i, i) for i in range(5)]
    assert (tmp_path / "died").exists()


def test_processes_that_always_die(on_ray: Map) -> None:
    with pytest.raises(EngineDiedError, match="3 "):
        list(on_ray(dies, range(5)))


def test_a_file_that_the_machines_do_not_share(on_ray: Map, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine has another file under the same path."""
    from dialog_gen.executors import ray as ray_module

    (tmp_path / "file").touch()
    monkeypatch.setattr(ray_module, "seen", lambda files: dict.fromkeys(files, 1))
    with pytest.raises(UsageError, match=r"does not see .*/file: .* share; or give an fsspec URL"):
        list(on_ray(square, range(3), shared=[tmp_path / "file"]))


@pytest.mark.parametrize("deep", [False, True])
def test_verify(deep: bool, dataset: Path, ray: dict[str, Any]) -> None:
    (dataset / "shards" / "s2.json").write_text("{")
    file = dataset / "data" / "s1.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    here = dialog_gen.verify(dataset, deep=deep)
    assert len(here.problems) >= 3
    assert dialog_gen.verify(dataset, deep=deep, **ray) == here


def test_gate(dataset: Path, tmp_path: Path, ray: dict[str, Any]) -> None:
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    gates = {"length": {"max": 4}, "set_duplicate": {}}
    assert dialog_gen.gate(dataset, gates) == dialog_gen.gate(other, gates, **ray)
    assert content(other) == content(dataset)
    assert {path.stem for path in (other / "data").iterdir()} == {f"s{n}.v2" for n in range(4)}


def test_compact(dataset: Path, tmp_path: Path, ray: dict[str, Any]) -> None:
    here = dialog_gen.compact(dataset, tmp_path / "here", shard_mb=1)
    there = dialog_gen.compact(dataset, tmp_path / "there", shard_mb=1, **ray)
    assert (there.images, there.shards, there.bytes) == (here.images, here.shards, here.bytes)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    assert dialog_gen.compact(dataset, tmp_path / "there", shard_mb=1, **ray).shards_already_done == here.shards


def test_repair(dataset: Path, tmp_path: Path, ray: dict[str, Any]) -> None:
    dialog_gen.compact(dataset, tmp_path / "out", shard_mb=1)
    before = content(tmp_path / "out")
    (tmp_path / "out" / "data" / "part-00000.parquet").unlink()
    summary = dialog_gen.repair(tmp_path / "out", **ray)
    assert (summary.made, summary.problem) == (["part-00000"], None)
    shutil.rmtree(tmp_path / "out" / "set-aside")
    assert content(tmp_path / "out") == before


def test_embed(tmp_path: Path, on_ray: Map) -> None:
    dialogues = write_dialogues(
        tmp_path / "dialogues", {name: [scene_row(n) for n in range(9 * i, 9 * i + 9)] for i, name in enumerate("abc")}
    )
    clip = load_clip(str(write_tiny_clip(tmp_path / "clip", seed=0)))
    for out, options in ((tmp_path / "here", {}), (tmp_path / "there", {"map_shards": on_ray})):
        embed_dataset(DatasetFolder(str(dialogues)), clip, out, batch_size=7, **options)
    here, there = VectorStore(tmp_path / "here"), VectorStore(tmp_path / "there")
    assert there.shards() == here.shards() != []
    for shard in here.shards():
        assert there.read(shard).equals(here.read(shard))
        assert there.source(shard) == here.source(shard)
