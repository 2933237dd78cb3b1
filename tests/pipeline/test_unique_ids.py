"""Ids are unique in a whole source; this is decided before an engine starts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.engine import ScriptedEngine
from helpers.inputs import png, write_images, write_tar

from dialog_gen.core import duplicates
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify
from dialog_gen.generation.run import generate
from dialog_gen.sources.unique import check_unique_ids


def write_rows(path: Path, ids: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array([png(number) for number in range(len(ids))]), "id": pa.array(ids)})
    pq.write_table(table, path, row_group_size=2)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Every engine that starts is counted in this one."""
    scripted = ScriptedEngine()

    def start(_: object, log: Path) -> ScriptedEngine:
        scripted.starts += 1
        return ScriptedEngine().start(log)

    monkeypatch.setattr("dialog_gen.engines.start.EngineSpec.start", start)
    return scripted


@pytest.mark.parametrize("dry_run", [True, False])
def test_ids_that_restart_in_each_file(tmp_path: Path, engine: ScriptedEngine, dry_run: bool) -> None:
    write_rows(tmp_path / "in" / "0.parquet", [7, 8, 9])
    write_rows(tmp_path / "in" / "a" / "1.parquet", [6, 5, 9])
    run: dict[str, Any] = {
        "model": "shapes-llava", "engine": "transformers", "images": tmp_path / "in", "out": tmp_path / "out",
        "shard_size": 2, "dry_run": dry_run,
    }  # fmt: skip
    expected = (
        r"image 2 of file://.*/in/0\.parquet and image 2 of file://.*/in/a/1\.parquet .*same id '9'.*--prefix-ids"
    )
    with pytest.raises(UsageError, match=expected):
        generate(**run)
    assert engine.starts == 0
    assert not (tmp_path / "out").exists()
    generate(**run, limit=5)
    prefixed: dict[str, Any] = {**run, "out": tmp_path / "prefixed", "prefix_ids": True}
    result = generate(**prefixed)
    if not dry_run:
        ids = [row["image_id"] for row in DatasetFolder(str(tmp_path / "prefixed")).rows(["image_id"])]
        assert ids == ["0/7", "0/8", "0/9", "a/1/6", "a/1/5", "a/1/9"]
        assert verify(tmp_path / "prefixed").problems == []
    assert result.summary["config"]["prefix_ids"] is True
    plain: dict[str, Any] = {**run, "dry_run": True, "limit": 5}
    assert "prefix_ids" not in generate(**plain).summary["config"]
    # rows with and without a prefix are not mixed in one folder
    if not dry_run:
        with pytest.raises(UsageError, match="prefix_ids"):
            generate(**run, prefix_ids=True)


def test_duplicates_in_one_file_have_another_remedy(tmp_path: Path) -> None:
    write_rows(tmp_path / "p.parquet", ["a", "b", "c", "d", "a"])
    for prefix_ids in (False, True):
        with pytest.raises(UsageError, match=r"image 0 of .* and image 4 of .* same id '(p/)?a'.*remove their column"):
            check_unique_ids(str(tmp_path), prefix_ids=prefix_ids)
    check_unique_ids(str(tmp_path), limit=4)


def test_many_ids_are_spilled_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_HASHES_IN_MEMORY", 16)
    write_rows(tmp_path / "0.parquet", list(range(300)))
    write_rows(tmp_path / "1.parquet", list(range(300, 600)))
    check_unique_ids(str(tmp_path))
    write_rows(tmp_path / "2.parquet", list(range(17, 400)))
    with pytest.raises(UsageError, match="same id '17'"):
        check_unique_ids(str(tmp_path))


def test_suspects_are_limited() -> None:
    with duplicates.DuplicateFinder() as finder:
        finder.add(str(number % 100) for number in range(200))
        assert len(finder.suspects(7)) == 7
        assert finder.suspects(7) < finder.suspects()
        assert len(finder.suspects()) == 100


def test_a_key_with_the_path_of_another_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"b/c.jpg": b"1", "c.jpg": b"2"})
    write_tar(tmp_path / "a" / "b.tar", {"d.jpg": b"3"})
    check_unique_ids(str(tmp_path))
    write_tar(tmp_path / "a" / "b.tar", {"d.jpg": b"3", "c.jpg": b"4"})
    with pytest.raises(UsageError, match="same id 'a/b/c'"):
        check_unique_ids(str(tmp_path))


def test_only_ids_from_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "files", 3)
    write_tar(tmp_path / "tars" / "a.tar", {"k.jpg": b"1"})
    write_tar(tmp_path / "tars" / "b.tar", {"k.jpg": b"1"})

    def refuse(*_: object) -> None:
        raise AssertionError("the source was indexed")

    monkeypatch.setattr("dialog_gen.sources.tar.Tar.index", refuse)
    monkeypatch.setattr("dialog_gen.sources.files.ImageFiles.index", refuse)
    check_unique_ids(str(tmp_path / "files"))
    check_unique_ids(str(tmp_path / "tars"))


def test_tars_whose_names_and_keys_meet(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"b/c.png": png(0)})
    write_tar(tmp_path / "a" / "b.tar", {"c.png": png(1)})
    for prefix_ids in (False, True):
        with pytest.raises(UsageError, match=r"have the same id 'a/b/c'.*rename one of the files") as raised:
            check_unique_ids(str(tmp_path), prefix_ids=prefix_ids)
        assert "--prefix-ids" not in str(raised.value)
