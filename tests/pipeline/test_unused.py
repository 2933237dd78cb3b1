"""What is in a source and is not used: by which rule, and where it is told."""

import gzip
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.engine import ScriptedEngine
from helpers.inputs import png, write_files, write_images, write_tar
from helpers.runs import run

from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.generation.run import generate
from dialog_gen.publish.compact import compact
from dialog_gen.sources.base import InputShard, SourceImage, open_source
from dialog_gen.sources.unused import UNUSED_REASONS, unused_text


def shards(spec: object, size: int = 100) -> list[InputShard]:
    return list(open_source(str(spec), shard_size=size))


def images(spec: object, size: int = 100) -> list[SourceImage]:
    return [image for shard in shards(spec, size) for image in shard.read()]


def found(spec: object) -> tuple[dict[str, str | None], dict[str, int]]:
    """Id -> caption, and what is not used."""
    unused = dict[str, int]()
    for shard in shards(spec):
        for reason, number in shard.unused.items():
            unused[reason] = unused.get(reason, 0) + number
    return {image.image_id: image.caption for image in images(spec)}, unused


@pytest.mark.parametrize(
    ("members", "expected", "unused"),
    [
        # dots in names: each image is read, with its own caption
        (
            {"trip 2.0.jpg": b"0", "trip 2.1.jpg": b"1", "trip 2.1.txt": b"one", "trip 2.0.txt": b"zero"},
            {"t/trip 2.0": "zero", "t/trip 2.1": "one"},
            {},
        ),
        # webdataset's keys stay what they are
        ({"s0.mask.png": b"m", "s0.jpg": b"j", "s0.txt": b"c"}, {"t/s0": "c"}, {"second_image": 1}),
        ({"s0.jpg": b"j", "s0.mask.png": b"m", "s0.mask.txt": b"no"}, {"t/s0": "no"}, {"second_image": 1}),
        ({"s.l.jpg": b"l", "s.r.jpg": b"r", "s.cls": b"3"}, {"t/s": None}, {"second_image": 1, "other_file": 1}),
        ({"s.cls": b"3", "s.l.jpg": b"l", "s.r.jpg": b"r"}, {"t/s": None}, {"second_image": 1, "other_file": 1}),
        ({"s0.left.jpg": b"l", "s0.right.jpg": b"r", "s0.json": b"{}"}, {"t/s0": None}, {"second_image": 1}),
        ({"s0.seg.png": b"s", "s0.txt": b"c"}, {"t/s0": "c"}, {}),
        ({"1.jpg": b"j", "1.png": b"p", "2.png": b"q"}, {"t/1": None, "t/2": None}, {"second_image": 1}),
        ({"a.0.jpg": b"1", "a.0.png": b"2", "a.1.png": b"3"}, {"t/a.0": None, "t/a.1": None}, {"second_image": 1}),
        ({"a.jpg": b"j", "a.txt": b"c", "a.v2.txt": b"d"}, {"t/a": "c"}, {"other_file": 1}),
        ({"a.jpg": b"j", "b.txt": b"c", "b.json": b"{}"}, {"t/a": None}, {"no_image": 2}),
        (
            {"a.jpg": b"j", "b.svg": b"<", "c.jxl": b"x", "d.npy": b"n", "e": b""},
            {"t/a": None},
            {"unsupported_format": 2, "other_file": 2},
        ),
    ],
)  # fmt: skip
def test_members_of_a_tar(
    tmp_path: Path, members: dict[str, bytes], expected: dict[str, str | None], unused: dict[str, int]
) -> None:
    write_tar(tmp_path / "t.tar", members)
    assert found(tmp_path) == (expected, unused)


def test_the_plain_image_is_the_image_in_any_order(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", {"0.mask.png": b"mask", "0.jpg": b"plain", "1.jpg": b"plain", "1.mask.png": b"mask"})
    assert [image.data for image in images(tmp_path)] == [b"plain", b"plain"]


def test_tars_that_differ_in_their_extension_only(tmp_path: Path) -> None:
    names = ["foo.tar", "foo.TAR", "Foo.tar", "foo.tar.gz", "foo.TAR.tar", "bar.TAR"]
    for number, name in enumerate(names):
        write_tar(tmp_path / "plain.tar", {f"{k}.jpg": f"{number}/{k}".encode() for k in range(3)})
        content = (tmp_path / "plain.tar").read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (tmp_path / "plain.tar").unlink()
    by_id = {image.image_id: image.data.decode() for image in images(tmp_path)}
    assert len(by_id) == 18
    assert {image_id[:-2]: data[0] for image_id, data in by_id.items()} == {
        "foo": "0",
        "foo.TAR~": "1",
        "Foo": "2",
        "foo.tar.gz": "3",
        "foo.TAR": "4",
        "bar": "5",
    }
    shard_names = [shard.name.casefold() for shard in shards(tmp_path, 2)]
    assert len(shard_names) == len(set(shard_names)) == 12


def test_parquet_files_that_differ_in_their_extension_only(tmp_path: Path) -> None:
    for name in ("p.parquet", "p.PARQUET"):
        pq.write_table(pa.table({"image": pa.array([name.encode()])}), tmp_path / name)
    assert {i.image_id: i.data for i in images(tmp_path)} == {"p/0": b"p.parquet", "p.PARQUET/0": b"p.PARQUET"}
    assert len({shard.name.casefold() for shard in shards(tmp_path)}) == 2


def test_names_that_are_not_utf8_and_their_escapes_are_different_ids(tmp_path: Path) -> None:
    members = {"caf\udce9.jpg": b"1", "caf\\xe9.jpg": b"2", "caf\\x5cxe9.jpg": b"3", "caf\\y.jpg": b"4"}
    write_tar(tmp_path / "t.tar", members)
    by_id = {image.image_id: image.data for image in images(tmp_path)}
    assert sorted(by_id.values()) == [b"1", b"2", b"3", b"4"]
    assert (by_id["t/caf\\xe9"], by_id["t/caf\\y"]) == (b"1", b"4")


def test_images_beside_tars_are_counted(tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"1"})
        write_files(tmp_path, {f"{name}.parquet": b"PAR1", f"{name}_stats.json": b"{}"})  # img2dataset's own
    write_files(tmp_path, {"a.jpg": b"1", "sub/b.PNG": b"2", "rows.parquet": b"PAR1", "README.md": b"x", "c.svg": b"<"})
    assert found(tmp_path) == (
        {"00000/00000": None, "00001/00001": None},
        {"other_source": 3, "other_file": 1, "unsupported_format": 1},
    )


def test_files_of_a_folder(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"1", "a.txt": b"cap", "a.json": b'{"url": "u", "caption": "no", "sha256": "s"}', "b.svg": b"<",
        "B.PNG": b"2", "B.json": b'{"caption": "from json"}', "c.txt": b"alone", "d.jxl": b"x", "jpg": b"no extension",
        "e.HEIC": b"3",
    }  # fmt: skip
    write_files(tmp_path, files)
    assert [(i.image_id, i.url, i.caption, i.source_sha256) for i in images(tmp_path)] == [
        ("B.PNG", None, "from json", None),
        ("a.jpg", "u", "cap", "s"),
        ("e.HEIC", None, None, None),
    ]
    [shard] = shards(tmp_path)
    assert shard.unused == {"unsupported_format": 2, "other_file": 2}
    assert shard.unused_names["unsupported_format"] == ("b.svg", "d.jxl")


def test_img2dataset_folders_of_files(tmp_path: Path) -> None:
    about = {"url": "http://h/0.jpg", "caption": "other", "sha256": "cd" * 32}
    files = {"0.jpg": b"1", "0.txt": b"cap 0", "0.json": json.dumps(about).encode()}
    write_files(tmp_path, {f"00000/{name}": data for name, data in files.items()})
    write_files(tmp_path, {"00000.parquet": b"PAR1", "00000_stats.json": b"{}"})
    assert images(tmp_path) == [SourceImage("00000/0.jpg", b"1", "0.jpg", "http://h/0.jpg", "cap 0", "cd" * 32)]
    assert found(tmp_path)[1] == {"other_file": 2}


def test_second_images_of_rows(tmp_path: Path) -> None:
    cells = [[b"1", b"2", b"3"], [b"4"], [], None, [b"5", b"6"]]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    mask = pa.array([{"bytes": b"m", "path": None}] * 3 + [{"bytes": None, "path": None}, None], struct)
    table = pa.table({"image": pa.array(cells, pa.list_(pa.binary())), "mask": mask, "hash": [b"x"] * 5})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=3)
    assert [image.data for image in images(tmp_path)] == [b"1", b"4", b"", b"", b"5"]
    assert found(tmp_path)[1] == {"second_image": 3 + 3}


def test_what_was_there_instead_of_images(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.svg": b"<", "notes.md": b"x"})
    with pytest.raises(
        UsageError,
        match=r"found 1 image in a format that is not read: 'a\.svg'; 1 file without an image or a caption: "
        r"'notes\.md'",
    ):
        shards(tmp_path)
    write_tar(tmp_path / "t.tar", {"k.txt": b"x", "\x1b]0;evil.svg": b"<"})
    with pytest.raises(UsageError, match=r"1 text without an image: 't/k\.txt'") as caught:
        shards(tmp_path)
    assert "\x1b" not in str(caught.value)


def test_unused_things_belong_to_the_shard_before_them(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{name}.jpg": b"1" for name in "bcde"})
    write_files(tmp_path, {"a.svg": b"", "c.svg": b"", "d.svg": b"", "f.svg": b""})
    assert [(shard.count, dict(shard.unused)) for shard in shards(tmp_path, 2)] == [
        (2, {"unsupported_format": 2}),
        (2, {"unsupported_format": 2}),
    ]


def test_a_tar_without_images_is_a_shard_of_no_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", {"k.txt": b"x"})
    write_tar(tmp_path / "in" / "b.tar", {"k.png": png(1)})
    write_tar(tmp_path / "in" / "c.tar", {})
    assert [(shard.name, shard.count) for shard in shards(tmp_path / "in")] == [("a-000", 0), ("b-000", 1)]
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    assert (totals(tmp_path / "out").images, totals(tmp_path / "out").unused) == (1, {"no_image": 1})
    assert verify(tmp_path / "out").problems == []
    engine = ScriptedEngine()
    run(tmp_path / "in", tmp_path / "out", engine)
    assert engine.starts == 0


def test_the_count_is_part_of_the_accounting(tmp_path: Path) -> None:
    """It changes without any work for the engine, survives compaction, and is in no fingerprint."""
    write_images(tmp_path / "in", 4)
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine(), shard_size=2)
    before = {shard.name: shard.fingerprint for shard in shards(tmp_path / "in", 2)}
    assert verify(tmp_path / "out").unused == {}
    write_files(tmp_path / "in", {"00000.svg": b"<", "z.svg": b"<", "README": b"x"})
    assert {shard.name: shard.fingerprint for shard in shards(tmp_path / "in", 2)} == before
    engine = ScriptedEngine()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    run(tmp_path / "in", tmp_path / "out", engine, shard_size=2)
    assert engine.starts == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()} == files
    verdict = verify(tmp_path / "out")
    assert (verdict.unused, verdict.problems) == ({"other_file": 1, "unsupported_format": 2}, [])
    compact(tmp_path / "out", tmp_path / "compact")
    assert totals(tmp_path / "compact").unused == verdict.unused


def test_hidden_files_are_counted(tmp_path: Path) -> None:
    """They are no images, even with the name of one, but whoever has such files is told; hidden folders are no part."""
    write_images(tmp_path / "in", 2)
    write_files(tmp_path / "in", {".a.png": png(3), "._00000.png": b"x", ".DS_Store": b"x", ".cache/b.png": png(4)})
    assert found(str(tmp_path / "in"))[1] == {"hidden": 2, "other_file": 1}
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    verdict = verify(tmp_path / "out")
    assert (verdict.images, verdict.unused, verdict.problems) == (2, {"hidden": 2, "other_file": 1}, [])
    # One that is named is an image.
    assert [*found(str(tmp_path / "in" / ".a.png"))[0]] == [".a.png"]


def test_a_count_below_zero_is_damage(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 1)
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    [name] = DatasetFolder(str(tmp_path / "out")).shards()
    path = tmp_path / "out" / "shards" / f"{name}.json"
    path.write_text(json.dumps({**unsealed(path.read_bytes()), "unused": {"second_image": -1}}))
    assert verify(tmp_path / "out").problem_count


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("dialog_gen.engines.start.EngineSpec.start", lambda spec, log: ScriptedEngine())
    return {"model": "shapes-llava", "engine": "transformers", "images": tmp_path / "in", "out": tmp_path / "out"}


def test_it_is_told(tmp_path: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "in" / "a.tar", {"0.jpg": png(0), "0.png": png(1), "1.svg": b"<"})
    write_files(tmp_path / "in", {"README": b"x"})
    plan = generate(**settings, dry_run=True)
    assert "  not used: 1 further image of a sample: 'a/0.png'\n" in plan.text
    assert "  not used: 1 image in a format that is not read: 'a/1.svg'\n" in plan.text
    with caplog.at_level(logging.WARNING):
        result = generate(**settings, max_losses=1)
    assert "not used: 1 further image of a sample: 'a/0.png'" in caplog.text
    assert "README" not in caplog.text  # no warning about what nobody takes for an image
    reasons = "1 file without an image or a caption, 1 further image of a sample, 1 image in a format that is not read"
    assert f"not used           3   {reasons}" in result.text
    stored = unsealed((tmp_path / "out" / "run.json").read_bytes())
    assert stored["dataset"]["unused"] == {"other_file": 1, "second_image": 1, "unsupported_format": 1}


def test_each_reason_has_words() -> None:
    for reason in UNUSED_REASONS:
        one, two = (unused_text(reason, count) for count in (1, 2))
        assert one[:2] + two[:2] == "1 2 "
        assert "_" not in one + two
        noun = one.split(" ")[1]
        assert two.split(" ")[1] == (noun if noun == "further" else f"{noun}s")
    assert unused_text("of_a_later_version", 3) == "of_a_later_version 3"


def test_compressed_tars(tmp_path: Path) -> None:
    members = {f"{k}.jpg": f"<{k}>".encode() * 1000 for k in range(9)} | {f"{k}.txt": b"cap %d" % k for k in range(9)}
    write_tar(tmp_path / "plain" / "t.tar", members)
    for name in ("t.tar.gz", "t.tgz"):
        (tmp_path / name).mkdir()
        with (tmp_path / "plain" / "t.tar").open("rb") as source, gzip.open(tmp_path / name / name, "wb") as target:
            shutil.copyfileobj(source, target)
        assert images(tmp_path / name, 2) == images(tmp_path / "plain", 2)
        assert [shard.name for shard in shards(tmp_path / name, 2)] == [
            shard.name for shard in shards(tmp_path / "plain", 2)
        ]
        whole = (tmp_path / name / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:-6], b"", whole[:200] + b"\0" * 9 + whole[209:]):
            (tmp_path / name / name).write_bytes(damaged)
            with pytest.raises(UsageError, match="damaged or cut short"):
                images(tmp_path / name)


def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "in" / "t.tar", {f"{k}.jpg": b"%d" % k for k in range(40)})
    content = (tmp_path / "in" / "t.tar").read_bytes()
    (tmp_path / "in" / "t.tar").unlink()
    (tmp_path / "in" / "t.tar.gz").write_bytes(gzip.compress(content))
    opened = list[object]()
    real = gzip.open
    monkeypatch.setattr(gzip, "open", lambda *args: opened.append(args) or real(*args))
    assert len(images(tmp_path / "in", 2)) == 40
    assert len(opened) == 1


@pytest.mark.parametrize("form", ["", "/*"])
def test_links_that_lead_nowhere(tmp_path: Path, form: str) -> None:
    write_files(tmp_path / "in", {"a.png": png(0), "b.png": png(1)})
    for name in ("c.png", "a.txt", "notes"):
        (tmp_path / "in" / name).symlink_to("/nowhere/else")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "d.png").symlink_to("a.png")
    assert found(f"{tmp_path / 'in'}{form}") == (dict.fromkeys(["a.png", "b.png", "d.png"]), {"link": 4})


def test_tars_that_are_links_to_nowhere(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", {"0.png": png(0)})
    (tmp_path / "in" / "b.tar").symlink_to("/nowhere/b.tar")
    assert found(tmp_path / "in") == ({"a/0": None}, {"link": 1})
