import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cli import Cli
from helpers.inputs import sha256
from helpers.many_shards import write_many_shards
from helpers.rows import make_row, shard_of, sign, write_shard
from PIL import Image

import dialog_gen
from dialog_gen.core import duplicates as duplicates_module
from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import sealed, unsealed
from dialog_gen.dataset import verify as verify_module
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import Verdict, totals, verify
from dialog_gen.dataset.writer import open_writer

DATA, REJECTS, SIDECAR = "data/s0.parquet", "rejects/s0.parquet", "shards/s0.json"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Shard s0: four accepted, two rejected, one unreadable; s1: three accepted."""
    rows = [make_row(i) for i in range(4)]
    rows += [make_row(4, "rejected"), make_row(5, "unreadable"), make_row(6, "rejected", reason="empty")]
    with open_writer(str(tmp_path), {"seed": 1}) as store:
        write_shard(store, shard_of("s0", 7), rows)
        write_shard(store, shard_of("s1", 3), [make_row(i) for i in (7, 8, 9)])
    return tmp_path


def problems(out: Path) -> list[str]:
    verdict = verify(DatasetFolder(str(out)))
    assert verdict.problem_count == len(verdict.problems)
    return verdict.problems


def edit_manifest(out: Path, edit: Callable[[dict[str, Any]], object], name: str = SIDECAR) -> None:
    manifest = unsealed((out / name).read_bytes())
    edit(manifest)
    (out / name).write_text(json.dumps(sealed(manifest)))


def edit_rows(out: Path, edit: Callable[[list[dict[str, Any]]], object], name: str = DATA) -> None:
    """Rewrites the rows of s0, and signs them."""
    table = pq.read_table(out / name)
    rows = table.to_pylist()
    edit(rows)
    schema = pa.schema([column.with_nullable(True) for column in table.schema])
    pq.write_table(pa.Table.from_pylist(rows, schema), out / name)
    sign(out, "s0")


def rewrite(name: str, change: Callable[[bytes], bytes], *, signed: bool = False) -> Callable[[Path], None]:
    def damage(out: Path) -> None:
        (out / name).write_bytes(change((out / name).read_bytes()))
        if signed:
            sign(out, "s0")

    return damage


def flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def damage_footer(data: bytes) -> bytes:
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:start] + b"\xff" * 16 + data[start + 16 :]


def copy_shard(out: Path) -> None:
    """s2 holds what s1 holds."""
    shutil.copy(out / "data" / "s1.parquet", out / "data" / "s2.parquet")
    manifest = json.dumps(unsealed((out / "shards" / "s1.json").read_bytes()))
    (out / "shards" / "s2.json").write_text(manifest.replace('"s1"', '"s2"').replace("data/s1", "data/s2"))


def drop_column(out: Path) -> None:
    pq.write_table(pq.read_table(out / DATA).drop_columns(["caption"]), out / DATA)
    sign(out, "s0")


def change_type(out: Path) -> None:
    table = pq.read_table(out / DATA)
    at = table.schema.get_field_index("attempts")
    pq.write_table(table.set_column(at, "attempts", table["attempts"].cast(pa.int64())), out / DATA)
    sign(out, "s0")


def replace_image(rows: list[dict[str, Any]]) -> None:
    rows[2] |= {"caption": "edited", "images": [{"bytes": b"another image", "path": "x"}]}


DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "a flipped bit at the start": (rewrite(DATA, flip(9)), ["data/s0.parquet has another checksum"]),
    "a flipped bit at the end": (rewrite(REJECTS, flip(-20)), ["rejects/s0.parquet has another checksum"]),
    "a byte less": (rewrite(DATA, lambda data: data[:-1]), ["data/s0.parquet has 1"]),
    "a byte more": (rewrite(DATA, lambda data: data + b"x"), ["are promised"]),
    "a missing file": (lambda out: (out / DATA).unlink(), ["shard s0: data/s0.parquet is missing"]),
    "a folder for a file": (
        lambda out: ((out / DATA).unlink(), (out / DATA).mkdir()),
        ["shard s0: data/s0.parquet cannot be read: Is a directory"],
    ),
    "an extra file": (
        lambda out: shutil.copy(out / DATA, out / "data" / "mine.parquet"),
        ["data/mine.parquet belongs to no finished shard"],
    ),
    "extra rejects": (
        lambda out: (out / "rejects" / "s1.parquet").write_bytes(b""),
        ["rejects/s1.parquet belongs to no finished shard"],
    ),
    "no manifest": (
        lambda out: (out / SIDECAR).unlink(),
        ["data/s0.parquet belongs to no finished shard", "rejects/s0.parquet belongs to no finished shard"],
    ),
    "half a manifest": (
        rewrite(SIDECAR, lambda data: data[: len(data) // 2]),
        ["shards/s0.json is damaged", "data/s0.parquet belongs to no", "rejects/s0.parquet belongs to no"],
    ),
    "an empty manifest": (
        rewrite(SIDECAR, lambda data: b""),
        ["shards/s0.json is damaged", "data/s0.parquet belongs to no", "rejects/s0.parquet belongs to no"],
    ),
    "a manifest of something else": (
        rewrite(SIDECAR, lambda data: b'{"images": 7}'),
        ["shards/s0.json is damaged", "data/s0.parquet belongs to no", "rejects/s0.parquet belongs to no"],
    ),
    "a renamed manifest": (
        lambda out: (out / SIDECAR).rename(out / "shards" / "s7.json"),
        [
            "shards/s7.json is the manifest of another shard",
            "data/s0.parquet belongs to no",
            "rejects/s0.parquet belongs",
        ],
    ),
    "another configuration": (
        lambda out: edit_manifest(out, lambda manifest: manifest.update(config_sha256="0" * 64)),
        ["shard s0 was made with another configuration than config.json tells"],
    ),
    "counts that do not add up": (
        lambda out: edit_manifest(out, lambda manifest: manifest.update(images=8)),
        [r"shard s0: 4 accepted \+ 2 rejected \+ 1 unreadable are not 8 images"],
    ),
    "counts that add up": (
        lambda out: edit_manifest(out, lambda manifest: manifest.update(images=8, accepted=5)),
        ["shard s0: its rows count 4 accepted, .* its manifest 5 accepted"],
    ),
    "another reason": (
        lambda out: edit_manifest(out, lambda manifest: manifest["reasons"].update(rejected={"empty": 2})),
        [r"rows count .*1 rejected \(empty\), 1 rejected \(too_few_pairs\).* its manifest .*2 rejected \(empty\)"],
    ),
    "a promise of more rows": (
        lambda out: edit_manifest(out, lambda manifest: manifest["files"][0].update(rows=5)),
        ["data/s0.parquet has 4 rows, 5 promised"],
    ),
    "a forgotten file": (
        lambda out: edit_manifest(out, lambda manifest: manifest["files"].pop()),
        ["shard s0: its rows count 4 accepted, its manifest 4 accepted", "rejects/s0.parquet belongs to no finished"],
    ),
    "a lost row, signed": (
        lambda out: edit_rows(out, lambda rows: rows.pop()),
        ["data/s0.parquet has 3 rows, 4 promised", "shard s0: its rows count 3 accepted"],
    ),
    "another image, signed": (
        lambda out: edit_rows(out, replace_image),
        ["data/s0.parquet: 'image 2': image_sha256 is not that of the image"],
    ),
    "another hash, signed": (
        lambda out: edit_rows(out, lambda rows: rows[0].update(image_sha256="0" * 64), REJECTS),
        ["rejects/s0.parquet: 'image 4': image_sha256 is not that of the image"],
    ),
    "scores and marks of other pairs, signed": (
        lambda out: edit_rows(out, lambda rows: rows[0].update(answer_logprobs=[0.0, 1.0], gates=[])),
        ["answer_logprobs has 2 entries for 1 pair", "gates has 0 entries for 1 pair"],
    ),
    "an id twice in a shard, signed": (
        lambda out: edit_rows(out, lambda rows: rows[0].update(image_id="image 3")),
        ["image_id 'image 3' stands in more than one row"],
    ),
    "an id both accepted and rejected, signed": (
        lambda out: edit_rows(out, lambda rows: rows[0].update(image_id="image 4")),
        ["image_id 'image 4' stands in more than one row"],
    ),
    "an id in two shards, signed": (
        lambda out: edit_rows(out, lambda rows: rows[0].update(image_id="image 8")),
        ["image_id 'image 8' stands in more than one row"],
    ),
    "a shard twice": (copy_shard, [f"image_id 'image {i}' stands in more than one row" for i in (7, 8, 9)]),
    "no pair, signed": (
        lambda out: edit_rows(out, lambda rows: rows[1].update(texts=[])),
        ["data/s0.parquet: 'image 1': an accepted row without a complete"],
    ),
    "half a pair, signed": (
        lambda out: edit_rows(out, lambda rows: rows[1]["texts"].append({"user": "Why?", "assistant": ""})),
        ["data/s0.parquet: 'image 1': an accepted row without a complete"],
    ),
    "no id, signed": (
        lambda out: edit_rows(out, lambda rows: rows[0].update(image_id=None)),
        ["shard s0: data/s0.parquet cannot be read"],
    ),
    "a lost column, signed": (drop_column, [r"data/s0.parquet lacks columns of the record .*\['caption'\]"]),
    "another type, signed": (change_type, [r"data/s0.parquet lacks columns .* another type: \['attempts'\]"]),
    "no Parquet, signed": (rewrite(DATA, lambda data: b"?" * 99, signed=True), ["data/s0.parquet cannot be read"]),
    "an empty file, signed": (rewrite(DATA, lambda data: b"", signed=True), ["data/s0.parquet cannot be read"]),
    "a damaged footer, signed": (
        rewrite(DATA, damage_footer, signed=True),
        ["data/s0.parquet cannot be read"],
    ),
    "damaged pages, signed": (
        rewrite(DATA, lambda data: data[:40] + b"\xff" * 400 + data[440:], signed=True),
        ["data/s0.parquet cannot be read"],
    ),
}


def test_a_good_dataset_passes(out: Path) -> None:
    told: list[tuple[Any, ...]] = []
    verdict = verify(out, on_progress=lambda *call: told.append(call))
    assert verdict == Verdict(
        shards=2,
        images=10,
        accepted=7,
        rejected=2,
        unreadable=1,
        pairs=7,
        reasons={"rejected": {"empty": 1, "too_few_pairs": 1}, "unreadable": {"truncated": 1}},
    )
    assert [call[1:3] for call in told] == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(out: Path, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(out)
    found = problems(out)
    assert len(found) == len(expected), found
    assert [pattern for pattern, problem in zip(expected, found, strict=True) if not re.search(pattern, problem)] == []


def test_every_flipped_bit_of_a_file_is_found(out: Path) -> None:
    whole = (out / DATA).read_bytes()
    for place in range(0, len(whole), 97):
        (out / DATA).write_bytes(flip(place)(whole))
        assert len(problems(out)) == 1


def test_one_damaged_shard_hides_no_other(out: Path) -> None:
    (out / DATA).unlink()
    edit_manifest(out, lambda manifest: manifest["reasons"].update(rejected={}), "shards/s1.json")
    copy_shard(out)
    rewrite("data/s2.parquet", flip(9))(out)
    found = "\n".join(problems(out))
    assert "data/s0.parquet is missing" in found
    assert "data/s2.parquet has another checksum" in found
    # s1 is read, and so is the id that two manifests promise.
    assert verify(DatasetFolder(str(out))).pairs == 3


def test_what_is_wrong_is_counted_and_the_first_hundred_told(tmp_path: Path) -> None:
    rows = [make_row(i, image_sha256="0") for i in range(130)]
    with open_writer(str(tmp_path), {}) as store:
        write_shard(store, shard_of("s", 130), rows)
    verdict = verify(DatasetFolder(str(tmp_path)))
    assert (verdict.problem_count, len(verdict.problems)) == (130, 100)


def test_images_may_be_left_out(tmp_path: Path) -> None:
    with open_writer(str(tmp_path), {}) as store:
        rows = [make_row(0, images=None), make_row(1, images=[]), make_row(2, images=[{"bytes": None, "path": "a"}])]
        write_shard(store, shard_of("s", 3), rows)
    assert problems(tmp_path) == []


def test_names_that_sort_otherwise_with_their_extension(tmp_path: Path) -> None:
    """As those of a.tar and a-000.tar do: "a-000-000.json" stands before "a-000.json"."""
    names = ["a-000", "a-000-000", "a-000.b", "a-000 c", "a-000!"]
    with open_writer(str(tmp_path / "out"), {"schema_version": 3}) as store:
        for number, name in enumerate(names):
            write_shard(store, shard_of(name, 1), [make_row(number)])
    assert problems(tmp_path / "out") == []
    assert [manifest.shard for manifest in DatasetFolder(str(tmp_path / "out")).manifests()] == sorted(names)


def test_a_dataset_without_rows(tmp_path: Path) -> None:
    with open_writer(str(tmp_path), {}) as store:
        assert verify(store) == Verdict(being_written=True)
        write_shard(store, shard_of("s", 0), [])
    assert verify(DatasetFolder(str(tmp_path))) == Verdict(shards=1, reasons={"rejected": {}, "unreadable": {}})
    assert totals(DatasetFolder(str(tmp_path))).images == 0


def test_a_damaged_configuration_cannot_be_verified(out: Path) -> None:
    (out / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json is damaged"):
        verify(DatasetFolder(str(out)))


# Ids are told apart by their hashes


@pytest.mark.parametrize("values", [1, 2, 5])
def test_ids_of_the_same_hash_are_no_duplicates(out: Path, monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    for module in (verify_module, duplicates_module):
        monkeypatch.setattr(module, "hash_64", lambda image_id: sum(image_id.encode()) % values)
    assert problems(out) == []
    edit_rows(out, lambda rows: rows[0].update(image_id="image 8"))
    assert problems(out) == ["image_id 'image 8' stands in more than one row"]


# Totals


def test_totals_are_those_of_the_manifests(out: Path) -> None:
    verdict = totals(DatasetFolder(str(out)))
    assert (verdict.shards, verdict.images, verdict.pairs) == (2, 10, 0)
    assert (verdict.accepted, verdict.rejected, verdict.unreadable) == (7, 2, 1)
    assert verdict.reasons == {"rejected": {"empty": 1, "too_few_pairs": 1}, "unreadable": {"truncated": 1}}
    assert verdict.problems == []
    (out / "data" / "s1.parquet").unlink()  # reads no row
    (out / "shards" / "s0.json").write_text("{")
    verdict = totals(DatasetFolder(str(out)))
    assert (verdict.shards, verdict.images) == (1, 3)
    assert verdict.problems == ["shards/s0.json is damaged"]


# Deep verification decodes the images


def jpeg() -> bytes:
    stream = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


WHOLE = jpeg()
BROKEN = WHOLE[: len(WHOLE) // 2]


def with_image(number: int, data: bytes | None, status: str = "accepted", **columns: Any) -> dict[str, Any]:
    images = None if data is None else [{"bytes": data, "path": None}]
    return make_row(number, status, images=images, image_sha256=sha256(data or b""), **columns)


def test_deep_decodes_every_image(tmp_path: Path, dialog_gen_cli: Cli) -> None:
    rows = [
        with_image(0, WHOLE),
        with_image(1, BROKEN),
        with_image(2, None),
        with_image(3, BROKEN, "rejected"),
        with_image(4, WHOLE, "rejected"),
        with_image(5, BROKEN, "unreadable", reason="truncated"),
        with_image(6, BROKEN, "unreadable", reason="not_an_image"),
        with_image(7, WHOLE, "unreadable", reason="decode_error"),
        with_image(8, b"<html>", "unreadable", reason="not_an_image"),
        with_image(9, b"", "unreadable", reason="empty_file"),
        with_image(10, b"", "unreadable", reason="too_large"),
        with_image(11, b"?", "unreadable", reason="another_reason"),
        *(with_image(number, WHOLE) for number in range(12, 250)),
        with_image(250, BROKEN),
    ]
    with open_writer(str(tmp_path), {}) as store:
        write_shard(store, shard_of("s", len(rows)), rows)
    assert problems(tmp_path) == []
    assert dialog_gen.verify(tmp_path).problems == []
    assert dialog_gen.verify(tmp_path, deep=True).problems == [
        "data/s.parquet: 'image 1': its image cannot be decoded (truncated); recorded: readable",
        "data/s.parquet: 'image 250': its image cannot be decoded (truncated); recorded: readable",
        "rejects/s.parquet: 'image 3': its image cannot be decoded (truncated); recorded: readable",
        "rejects/s.parquet: 'image 6': its image cannot be decoded (truncated); recorded: not_an_image",
        "rejects/s.parquet: 'image 7': its image can be decoded; recorded: decode_error",
        "rejects/s.parquet: 'image 10': its image cannot be decoded (empty_file); recorded: too_large",
    ]
    assert dialog_gen_cli("verify", str(tmp_path)).code == 0
    ended = dialog_gen_cli("verify", str(tmp_path), "--deep")
    assert (ended.code, ended.out.count("its image can")) == (1, 6)


# Very many shards


def peak_bytes(out: Path) -> int:
    """The most that Python objects take during a verification."""
    tracemalloc.start()
    try:
        assert verify(out).problems == []
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_shards_take_little_memory(tmp_path: Path) -> None:
    write_many_shards(tmp_path / "few", 250, rows_every=50)
    write_many_shards(tmp_path / "many", 2250, rows_every=50)
    peak_bytes(tmp_path / "few")  # what the first call imports and caches is not counted
    assert (peak_bytes(tmp_path / "many") - peak_bytes(tmp_path / "few")) / 2000 < 300
    verdict = verify(tmp_path / "many")
    assert (verdict.shards, verdict.images) == (2250, 45)
    (tmp_path / "many" / "data" / "s-0000051.parquet").touch()
    assert verify(tmp_path / "many").problem_count == 1
