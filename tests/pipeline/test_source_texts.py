"""Texts beside images, and rows that name a file: nothing in them ends a run."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.engine import ScriptedEngine
from helpers.inputs import png, write_files, write_tar
from helpers.rows import rows_of
from helpers.runs import run

from dialog_gen.dataset.verify import totals
from dialog_gen.sources import parquet as parquet_module
from dialog_gen.sources.base import SourceImage, open_source
from dialog_gen.sources.unique import check_unique_ids

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BAD = b"caf\xe9"


def images(spec: object, size: int = 100) -> list[SourceImage]:
    return [image for shard in open_source(str(spec), shard_size=size) for image in shard.read()]


def strings(values: list[bytes | None], kind: Any = None) -> pa.Array:
    """A column of strings whose bytes are not checked."""
    array = pa.array(values, pa.binary())
    array = pa.Array.from_buffers(pa.string(), len(array), array.buffers())
    return array if kind is None else array.cast(kind)


@pytest.mark.parametrize("kind", [None, pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_rows_that_are_not_utf8(tmp_path: Path, kind: Any) -> None:
    ids, captions = strings([b"a\xff", b"a\xfe", b"ok"], kind), strings([BAD, None, b"fine"], kind)
    column = pa.array([png(number) for number in range(3)])
    try:
        pq.write_table(
            pa.table({"image": column, "id": ids, "url": captions, "text": captions}), tmp_path / "p.parquet"
        )
    except pa.ArrowInvalid:
        pytest.skip("pyarrow does not write such a column")
    check_unique_ids(str(tmp_path))
    assert [(i.image_id, i.url, i.caption) for i in images(tmp_path)] == [
        ("a\\xff", "caf\ufffd", "caf\ufffd"),
        ("a\\xfe", None, None),
        ("ok", "fine", "fine"),
    ]


def test_a_run_over_bad_texts_ends_well(tmp_path: Path) -> None:
    path = pa.StructArray.from_arrays([pa.array([png(0), png(1)]), strings([BAD, b"b.png"])], ["bytes", "path"])
    pq.write_table(pa.table({"image": path, "caption": strings([BAD, b"x"])}), _folder(tmp_path / "in") / "p.parquet")
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    assert [(row["caption"], row["images"][0]["path"]) for row in rows_of(tmp_path / "out")] == [
        ("caf\ufffd", "caf\ufffd"),
        ("x", "b.png"),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3, None], ["3", None]), ([1.5, float("nan")], ["1.5", None]), ([True, False], [None, None])],
)
def test_captions_that_are_numbers(tmp_path: Path, values: list[Any], expected: list[str | None]) -> None:
    pq.write_table(pa.table({"image": [b"1", b"2"], "caption": values}), tmp_path / "p.parquet")
    assert [image.caption for image in images(tmp_path)] == expected


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (b'{"caption": "caf\xe9", "url": "u"}', ("u", "caf\ufffd")),
        ('{"caption": "wide", "url": "u"}'.encode("utf-16"), ("u", "wide")),
        (b'\xef\xbb\xbf{"caption": "mark"}', (None, "mark")),
        (b'{"caption": 7, "url": 8}', ("8", "7")),
        (b'{"caption": "half \\ud83d"}', (None, "half ?")),
        (b"[" * 100_000, (None, None)),
        (b'{"caption": ' + b"[" * 100_000, (None, None)),
        (b'{"width": 1' + b"0" * 5000 + b', "caption": "x"}', (None, None)),
        (b'{"width": 1e400, "caption": 1e400}', (None, None)),
        (b'["caption"]', (None, None)),
        (b"", (None, None)),
    ],
)
def test_json_beside_an_image(tmp_path: Path, about: bytes, expected: tuple[str | None, str | None]) -> None:
    write_tar(tmp_path / "tars" / "t.tar", {"a.jpg": b"1", "a.json": about})
    write_files(tmp_path / "files", {"a.jpg": b"1", "a.json": about})
    for kind in ("tars", "files"):
        [image] = images(tmp_path / kind)
        assert (image.url, image.caption) == expected


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_rows_that_name_a_file(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_files(root, {"a.png": png(1), "sub/b.png": png(2), "c.png": png(3), "empty.png": b""})
    write_files(tmp_path, {"secret.png": png(4)})
    (root / "sub" / "link.png").symlink_to(tmp_path / "secret.png")
    inside = ["b.png", "../a.png", str(root / "c.png"), "./x/../b.png"]
    outside = [
        "../../secret.png", str(tmp_path / "secret.png"), "link.png", "gone.png", "http://127.0.0.1:9/x.png",
        "file:///etc/hostname", "..", "", "\0", "C:\\x.png",
    ]  # fmt: skip
    cells = [{"bytes": None, "path": path} for path in inside + outside]
    cells += [{"bytes": png(5), "path": "../../secret.png"}]
    pq.write_table(pa.table({"image": pa.array(cells, STRUCT)}), root / "sub" / "p.parquet")
    got = images(root / "**" / "*.parquet")
    assert [image.data for image in got] == [png(2), png(1), png(3), png(2)] + [b""] * len(outside) + [png(5)]
    assert [image.missing is not None for image in got] == [False] * 4 + [bool(path) for path in outside] + [False]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    cells = [{"bytes": None, "path": "/data/a.jpg"}, {"bytes": png(1), "path": None}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": pa.array(cells, STRUCT)}), _folder(tmp_path / "in") / "p.parquet")
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    assert totals(tmp_path / "out").reasons["unreadable"] == {"empty_file": 1, "missing_file": 1}
    [missing, _] = rows_of(tmp_path / "out", "rejects")
    assert "/data/a.jpg" in missing["detail"]


def test_the_last_shard_of_a_row_group_costs_what_the_first_costs(tmp_path: Path) -> None:
    """Counted in rows that are decoded, in any order of reading that goes forward."""
    table = pa.table({"image": pa.array([b"%d" % number for number in range(4000)])})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=4000)
    decoded = [0]
    real = parquet_module._row_dicts

    def counted(batch: pa.RecordBatch) -> list[dict[str, Any]]:
        decoded[0] += batch.num_rows
        return real(batch)

    shards = list(open_source(str(tmp_path), shard_size=100))
    taken = list[int]()
    opened = [0]
    real_open = parquet_module.open_parquet

    def counted_open(file: Any) -> Any:
        opened[0] += 1
        return real_open(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_module, "_row_dicts", counted)
        patch.setattr(parquet_module, "open_parquet", counted_open)
        for shard in shards:
            before = decoded[0]
            rows = [int(image.data) for image in shard.read()]
            assert rows == list(range(len(taken) * 100, len(taken) * 100 + 100))
            taken.append(decoded[0] - before)
    assert opened[0] == 1
    assert max(taken) <= 100 + 2 * 16


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 2, 4, 1, 1], [3, 0, 4, 4]])
@pytest.mark.parametrize("group", [1, 3, 7, 100])
def test_shards_of_rows_can_be_read_in_any_order(tmp_path: Path, order: list[int], group: int) -> None:
    pq.write_table(pa.table({"image": [b"%d" % n for n in range(23)]}), tmp_path / "p.parquet", row_group_size=group)
    shards = list(open_source(str(tmp_path), shard_size=5))
    for number in order:
        if number % 2:
            next(shards[number].read())  # given up after one row
        expected = list(range(5 * number, min(23, 5 * number + 5)))
        assert [int(image.data) for image in shards[number].read()] == expected


def test_no_file_stays_open_after_the_last_shard(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"%d" % n for n in range(9)]}), tmp_path / "p.parquet")
    before = len(parquet_module._READERS._kept)
    images(tmp_path, 2)
    assert len(parquet_module._READERS._kept) == before
