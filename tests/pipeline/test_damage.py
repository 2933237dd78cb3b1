"""Damaged rows are read by nobody in silence, and never get a new checksum."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cli import Cli
from helpers.inputs import png, sha256
from helpers.rows import files_of, make_row, shard_of, sign, write_shard

from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.errors import DamagedDatasetError, UnreadableRowsError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.upgrade import upgrade
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.gates.apply import gate
from dialog_gen.inspect.page import report
from dialog_gen.inspect.sampling import sample_rows
from dialog_gen.inspect.statistics import stats
from dialog_gen.publish.card_data import card_data
from dialog_gen.publish.compact import compact
from dialog_gen.publish.export import export
from dialog_gen.publish.push import push
from dialog_train.data.derived import read_rows, sources_of

DATA = "data/s1.parquet"
STORED = Path(__file__).parent.parent / "data"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three shards of 150 rows: two row groups, about 1,500 bytes for each image."""
    out = tmp_path / "out"
    config = {"schema_version": 3, "model": "m", "protocol": "p", "seed": 1}
    noise = random.Random(0)
    with open_writer(str(out), config) as store:
        for number in range(3):
            rows = [make_row(150 * number + i) for i in range(150)]
            for row in rows:
                row["images"][0]["bytes"] = png(1) + noise.randbytes(1500)
                row["image_sha256"] = sha256(row["images"][0]["bytes"])
            write_shard(store, shard_of(f"s{number}", 150), rows)
    return out


def flip(file: Path, place: int, bit: int = 0) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ 1 << bit]))


def damage(file: Path, column: str) -> Callable[[], None]:
    """Flips a bit of a column so that Parquet itself reads other rows without an error; returns what flips it back."""
    found = pq.read_metadata(file).row_group(0)
    chunks = [found.column(i) for i in range(found.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.startswith(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    good = pq.read_table(file, columns=[column])
    for place in range(start + chunk.total_compressed_size - 1, start, -1):
        flip(file, place)
        try:
            if pq.read_table(file, columns=[column]) != good:
                return lambda: flip(file, place)
        except (pa.ArrowException, OSError):
            pass
        flip(file, place)
    raise AssertionError("every flipped bit is found by Parquet")


def forget_blocks(out: Path) -> None:
    """Makes the manifests those of a version that had no checksums of blocks."""
    for sidecar in (out / "shards").iterdir():
        manifest = unsealed(sidecar.read_bytes())
        for entry in manifest["files"]:
            del entry["block_crc32"]
        sidecar.write_text(json.dumps(manifest))


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "rows": lambda out, to: list(DatasetFolder(str(out)).rows(["texts"])),
    "sample": lambda out, to: list(sample_rows(DatasetFolder(str(out)), ["texts"], 1000)),
    "stats": lambda out, to: stats(out),
    "report": lambda out, to: report(out, to / "report.html"),
    "export": lambda out, to: export(out, to / "export", to="llava"),
    "card": lambda out, to: card_data(DatasetFolder(str(out))),
    "training": lambda out, to: [
        list(read_rows(DatasetFolder(str(out)), source, ["texts"])) for source in sources_of(DatasetFolder(str(out)))
    ],
    "gate": lambda out, to: gate(out, "text"),
    "gate of rows": lambda out, to: gate(out, "length"),
    "compact": lambda out, to: compact(out, to / "merged"),
    "compact without images": lambda out, to: compact(out, to / "merged", without_images=True),
}


@pytest.mark.parametrize("blocks", [True, False], ids=["blocks", "no blocks"])
@pytest.mark.parametrize("name", READERS)
def test_no_reader_takes_damaged_texts(out: Path, tmp_path: Path, name: str, *, blocks: bool) -> None:
    if not blocks:
        forget_blocks(out)
    damage(out / DATA, "texts")
    damaged, manifest = (out / DATA).read_bytes(), (out / "shards" / "s1.json").read_bytes()
    with pytest.raises(DamagedDatasetError, match=r"data/s1\.parquet"):
        READERS[name](out, tmp_path)
    assert ((out / DATA).read_bytes(), (out / "shards" / "s1.json").read_bytes()) == (damaged, manifest)
    assert verify(out).problems == ["shard s1: data/s1.parquet has another checksum than promised"]
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "report.html").exists()
    # What is made of the healthy shards is right.
    if (tmp_path / "merged").exists():
        assert verify(tmp_path / "merged").problem_count == 0


@pytest.mark.parametrize("column", ["image_id", "images", "caption", "created_at", "model"])
def test_a_gate_pass_gives_no_damaged_column_a_new_checksum(out: Path, column: str) -> None:
    mend = damage(out / DATA, column)
    with pytest.raises(UnreadableRowsError, match=r"data/s1\.parquet"):
        gate(out, "length")
    assert verify(out).problems == ["shard s1: data/s1.parquet has another checksum than promised"]
    # After the damage is mended, the same command goes on.
    mend()
    assert gate(out, "length")["pairs"] == 450
    assert verify(out).problems == []


def test_the_surveys_of_set_gates_come_before_any_rewriting(out: Path) -> None:
    damage(out / "data" / "s2.parquet", "texts")
    before = files_of(out)
    with pytest.raises(UnreadableRowsError, match=r"data/s2\.parquet"):
        gate(out, "set_duplicate")
    assert files_of(out) == before


def test_an_upgrade_leaves_a_damaged_shard_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "v2"
    shutil.copytree(STORED / "v2", out)
    damage(out / "data" / "set-000.parquet", "texts")
    with pytest.raises(Exception, match=r"1 shard of .* is damaged and not upgraded, first set-000"):
        upgrade(out)
    assert "shard set-000: data/set-000.parquet has another checksum than promised" in verify(out).problems


def test_a_damaged_manifest_is_not_skipped(out: Path, tmp_path: Path) -> None:
    (out / "shards" / "s1.json").write_text("{")
    for name in ("rows", "sample", "stats", "report", "export", "card", "training", "gate", "compact"):
        with pytest.raises(UsageError, match=r"shards/s1\.json is damaged"):
            READERS[name](out, tmp_path)


def test_a_renamed_manifest_is_not_used(out: Path, tmp_path: Path) -> None:
    (out / "shards" / "s1.json").rename(out / "shards" / "s7.json")
    for name in ("rows", "stats", "export", "training", "gate"):
        with pytest.raises(DamagedDatasetError, match=r"shards/s7\.json is"):
            READERS[name](out, tmp_path)


def test_no_flipped_bit_changes_a_read_row(out: Path) -> None:
    """In all regions: pages, their headers, dictionaries, the page index, the footer."""
    folder, file = DatasetFolder(str(out)), out / DATA
    entry = folder.manifest("s1").data  # type: ignore[union-attr]
    assert entry is not None
    size, draw, outcomes = file.stat().st_size, random.Random(0), {"refused": 0, "right": 0}
    metadata = pq.read_metadata(file)
    footer = size - 8 - metadata.serialized_size
    assert metadata.row_group(0).column(0).has_column_index  # a page index lies between rows and footer
    for columns in (["texts"], ["image_id", "model"]):
        good = [table.to_pylist() for table in folder.row_groups(entry, columns)]
        for place in [*range(0, footer, 4099), *range(footer - 3000, size, 61)]:
            bit = draw.randrange(8)
            flip(file, place, bit)
            try:
                assert [table.to_pylist() for table in folder.row_groups(entry, columns)] == good
                outcomes["right"] += 1
            except UnreadableRowsError:
                outcomes["refused"] += 1
                assert place // 65536 * 65536 <= place
            flip(file, place, bit)
    assert outcomes["refused"] > 100
    assert outcomes["right"] > 20


def test_a_file_without_blocks_is_read_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_blocks(out)
    folder = DatasetFolder(str(out))
    read, real = list[str](), DatasetFolder.damage
    monkeypatch.setattr(DatasetFolder, "damage", lambda self, entry: (read.append(entry.path), real(self, entry))[1])
    for _ in range(2):
        assert len(list(folder.rows(["texts"]))) == 450
    assert read == ["data/s0.parquet", "data/s1.parquet", "data/s2.parquet"]
    gate(out, "length")  # files that are written again have blocks
    list(folder.rows(["texts"]))
    assert len(read) == 3


def repeat_an_id(out: Path) -> None:
    """Makes the first id of s2 that of a row of s0, as in datasets of sources whose ids restart."""
    file = out / "data" / "s2.parquet"
    table = pq.read_table(file)
    ids = table.column("image_id").to_pylist()
    ids[0] = "image 7"
    pq.write_table(table.set_column(0, table.schema.field(0), [ids]), file)
    sign(out, "s2")


@pytest.mark.parametrize("to", ["llava", "webdataset", "texts"])
def test_no_export_of_repeated_ids(out: Path, tmp_path: Path, to: str) -> None:
    repeat_an_id(out)
    with pytest.raises(DamagedDatasetError, match=r"out: image_id 'image 7' stands in more than one row"):
        export(out, tmp_path / "new", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # None of the first 300 rows is a duplicate.
    assert export(out, tmp_path / "new", to=to, limit=300).images == 300


def test_no_repair_is_advised_for_repeated_ids(out: Path, dialog_gen_cli: Cli) -> None:
    repeat_an_id(out)
    for arguments in (["verify", str(out)], ["export", str(out), "--to", "texts", "--out", f"{out}-new"]):
        result = dialog_gen_cli(*arguments)
        assert "no repair mends ids that stand in more than one row" in result.out + result.err
        assert "dialog-gen repair" not in result.out + result.err


def test_no_merged_and_no_published_dataset_of_repeated_ids(out: Path, tmp_path: Path) -> None:
    repeat_an_id(out)
    for copy in (lambda: compact(out, tmp_path / "new"), lambda: push(out, "me/mine", verify=False)):
        with pytest.raises(DamagedDatasetError, match="image_id 'image 7' stands in more than one row"):
            copy()
    assert not (tmp_path / "new").exists()


def test_no_flipped_bit_of_a_manifest_or_a_note_is_as_promised(out: Path) -> None:
    gate(out, "length")
    bits = random.Random(0)
    for name in ("shards/s1.json", "gates.json"):
        whole = (out / name).read_bytes()
        end = whole.index(b'"sha256": "', len(whole) - 90)  # without the key of the checksum itself
        for bit in bits.sample(range(8 * end), 60):
            if whole[bit // 8 : bit // 8 + 1].isspace():
                continue
            flip(out / name, bit // 8, bit % 8)
            assert any(f"{name} is damaged" in problem for problem in verify(out).problems), (name, bit)
            (out / name).write_bytes(whole)
    assert verify(out).problem_count == 0


def test_a_damaged_note_of_a_repair_is_told(out: Path) -> None:
    """It names what was set aside: without it, fewer shards would be as promised."""
    with open_writer(str(out), DatasetFolder(str(out)).config()) as store:
        store.put_json("repair.json", {"shards": ["s7"]})
    assert "1 shard was set aside and not made again, first s7" in verify(out).problems[0]
    note = out / "repair.json"
    note.write_bytes(note.read_bytes().replace(b"s7", b"s2"))
    assert verify(out).problems == ["repair.json is damaged, which tells what a repair has still to make anew"]
