import io
import json
import os
import pickle
import tarfile
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dialog_gen.core.errors import UsageError
from dialog_gen.sources.base import InputShard, SourceImage, open_source, with_limit
from dialog_gen.sources.images import IMAGE_EXTENSIONS


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, caption: str | None = None, about: dict[str, Any] | None = None) -> dict[str, bytes]:
    members = {f"{key}.jpg": f"<{key}>".encode()}
    if caption is not None:
        members[f"{key}.txt"] = caption.encode()
    if about is not None:
        members[f"{key}.json"] = json.dumps(about).encode()
    return members


def samples(*keys: str) -> dict[str, bytes]:
    return {name: data for key in keys for name, data in sample(key).items()}


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def shards(spec: object, size: int = 100) -> list[InputShard]:
    return list(open_source(str(spec), shard_size=size))


def images(spec: object, size: int = 100) -> list[SourceImage]:
    return [image for shard in shards(spec, size) for image in shard.read()]


def ids(spec: object) -> list[str]:
    return [image.image_id for image in images(spec)]


def prints(spec: object, size: int = 100) -> list[str]:
    return [shard.fingerprint for shard in shards(spec, size)]


# Tars


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_as_img2dataset_writes_it(tmp_path: Path, form: int) -> None:
    members = {
        **sample("000000001", "a cat", {"url": "http://x/1", "caption": "not this"}),
        **sample("000000000", None, {"url": "http://x/0", "caption": "a dog", "width": 3}),
        **sample("000000002"),
    }
    write_tar(tmp_path / "00000.tar", members, form)
    write_tar(tmp_path / "00001.tar", sample("000010000", "é"), form)
    write_files(tmp_path, {f"0000{i}{end}": b"PAR1" for i in (0, 1) for end in (".parquet", "_stats.json")})
    assert [(shard.name, shard.count) for shard in shards(tmp_path, 2)] == [
        ("00000-000", 2),
        ("00000-001", 1),
        ("00001-000", 1),
    ]
    assert images(tmp_path, 2) == [
        SourceImage("00000/000000001", b"<000000001>", "000000001.jpg", "http://x/1", "a cat"),
        SourceImage("00000/000000000", b"<000000000>", "000000000.jpg", "http://x/0", "a dog"),
        SourceImage("00000/000000002", b"<000000002>", "000000002.jpg", None, None),
        SourceImage("00001/000010000", b"<000010000>", "000010000.jpg", None, "é"),
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_unicode_names_in_a_tar(tmp_path: Path, form: int) -> None:
    key = "d" * 120 + "/" + "ü" * 60
    write_tar(tmp_path / "t.tar", sample(key, "x"), form)
    assert images(tmp_path) == [SourceImage(f"t/{key}", f"<{key}>".encode(), "ü" * 60 + ".jpg", None, "x")]


def test_members_that_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("dev.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        folder = tarfile.TarInfo("dir.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("a.cls", "README", "._a.jpg", "only.txt", "./sub/a.seg.png", "sub/a.jpg", "sub/a.v2.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    assert images(tmp_path) == [SourceImage("t/sub/a", b"sub/a.jpg", "a.jpg", None, "sub/a.v2.txt")]
    [shard] = shards(tmp_path)
    assert shard.unused == {"link": 2, "no_image": 1, "other_file": 3, "second_image": 1}
    assert shard.unused_names == {
        "link": ("t/link.jpg",),
        "no_image": ("t/only.txt",),
        "other_file": ("t/a.cls",),
        "second_image": ("t/sub/a.seg.png",),
    }


def test_bytes_that_are_no_utf8_or_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(
        tmp_path / "t.tar",
        {"a.jpg": b"1", "a.txt": b"caf\xe9", "b.jpg": b"2", "b.json": b"{", "c.jpg": b"", "c.json": b"[1]"},
    )
    assert [(i.data, i.caption, i.url) for i in images(tmp_path)] == [
        (b"1", "caf�", None),
        (b"2", None, None),
        (b"", None, None),
    ]
    assert "t/b" in caplog.text


def test_a_duplicate_key_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("k1.jpg", b"1"), ("k2.jpg", b"2"), ("k1.jpg", b"3")])
    with pytest.raises(UsageError, match=r"t\.tar.*'k1'.*unique"):
        shards(tmp_path)


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "00007.tar", samples("a", "b", "c"))
    whole = path.read_bytes()
    end = 3 * 1024  # three members of a header and a block; the end mark follows
    for size in (0, 1, 100, 511, 512, 700, 1024, 1100, 1536, 2048, 2500, end - 1, end, end + 511):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"00007\.tar.*download it again"):
            shards(tmp_path)
    path.write_bytes(whole[: end + 512])
    assert ids(tmp_path) == ["00007/a", "00007/b", "00007/c"]


@pytest.mark.parametrize("damage", [b"<html>not found</html>" * 50, b"\x1f\x8b\x08" + bytes(600)])
def test_a_file_that_is_no_tar(tmp_path: Path, damage: bytes) -> None:
    write_files(tmp_path, {"t.tar": damage})
    with pytest.raises(UsageError, match="download it again"):
        shards(tmp_path)


def test_a_damaged_header_amid_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", samples("a", "b"))
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UsageError, match="download it again"):
        shards(tmp_path)


def test_a_tar_cut_after_it_was_indexed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", samples("a", "b"))
    [shard] = shards(tmp_path)
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(UsageError, match="cut short"):
        list(shard.read())
    path.unlink()
    with pytest.raises(UsageError, match="gone"):
        list(shard.read())


def test_an_unfinished_download(tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        write_tar(tmp_path / f"{name}.tar", samples(name))
    assert len(shards(tmp_path)) == 2  # no statistics at all: not img2dataset's
    write_files(tmp_path, {"00000_stats.json": b"{}"})
    for spec in (tmp_path, tmp_path / "*.tar", tmp_path / "00001.tar"):
        with pytest.raises(UsageError, match=r"00001\.tar is not complete.*[Ff]inish the download"):
            shards(spec)
    write_files(tmp_path, {"00001_stats.json": b"{}"})
    assert len(shards(tmp_path)) == 2


def test_names_are_unique_and_fit_for_files(tmp_path: Path) -> None:
    for name in ("a/00.tar", "b/00.tar", "a_00.tar", "a 00.tar", "ä00.tar", "x" * 200 + ".tar"):
        write_tar(tmp_path / name, samples("k1", "k2"))
    names = [shard.name for shard in shards(tmp_path, 1)]
    assert len(set(names)) == len(names) == 12
    assert all(name.isascii() and len(name) < 128 and not set(name) & set("/ \\:*?") for name in names)
    assert len(set(ids(tmp_path))) == 12


# Image files


def test_folder_of_images(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "b.PNG": b"b",
            "a/z.jpg": b"az",
            "a.jpg": b"a",
            "a/sub/y.Tiff": b"asy",
            "a.txt": b"a cat\n",
            ".hidden.jpg": b"no",
            ".cache/x.jpg": b"no",
            "notes.md": b"no",
            "meta.parquet": b"no",
            "_x.webp": b"x",
        },
    )
    assert images(tmp_path) == [
        SourceImage("_x.webp", b"x", "_x.webp"),
        SourceImage("a.jpg", b"a", "a.jpg", None, "a cat"),
        SourceImage("a/sub/y.Tiff", b"asy", "y.Tiff"),
        SourceImage("a/z.jpg", b"az", "z.jpg"),
        SourceImage("b.PNG", b"b", "b.PNG"),
    ]
    assert [(shard.name, shard.count) for shard in shards(tmp_path, 2)] == [
        ("images-000000", 2),
        ("images-000001", 2),
        ("images-000002", 1),
    ]
    assert ids(tmp_path) == sorted(ids(tmp_path))


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_each_extension_in_any_case(tmp_path: Path, extension: str) -> None:
    write_files(tmp_path, {f"a.{extension}": b"1", f"b.{extension.upper()}": b"2"})
    assert ids(tmp_path) == [f"a.{extension}", f"b.{extension.upper()}"]


def test_each_extension_in_a_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {f"{extension}.{extension}": b"1" for extension in IMAGE_EXTENSIONS})
    assert ids(tmp_path) == [f"0/{extension}" for extension in IMAGE_EXTENSIONS]
    assert {"mpo", "ppm", "pgm"} <= set(IMAGE_EXTENSIONS)


def test_links_to_files_are_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"real/a.jpg": b"12345", "in/b.jpg": b"x"})
    (tmp_path / "in" / "a.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    (tmp_path / "in" / "broken.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert [(i.image_id, i.data) for i in images(tmp_path / "in")] == [("a.jpg", b"12345"), ("b.jpg", b"x")]


def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_files(root, {"a/1.jpg": b"1", ".store/s/2.jpg": b"2"})
    write_files(tmp_path, {"out/x/3.jpg": b"3", "out/4.jpg": b"4"})
    for link, to in {
        "A-first": root / "a",  # is read as a
        "b": root / ".store" / "s",  # cannot be read otherwise
        "c": tmp_path / "out",
        "d": tmp_path / "out" / "x",  # was read as c/x
        "e": tmp_path / "out",
        "loop": root,
        "gone": tmp_path / "gone",
    }.items():
        (root / link).symlink_to(to)
    (tmp_path / "out" / "back").symlink_to(root)
    (tmp_path / "out" / "self").symlink_to(tmp_path / "out")
    (tmp_path / "link").symlink_to(root)
    expected = ["a/1.jpg", "b/2.jpg", "c/4.jpg", "c/x/3.jpg"]
    assert ids(root) == ids(tmp_path / "link") == expected
    # What holds the source itself: its other folders.
    (root / "c").unlink()
    (root / "z").symlink_to(tmp_path)
    assert ids(root) == ["a/1.jpg", "b/2.jpg", "d/3.jpg", "e/4.jpg"]


def test_tars_behind_a_link(tmp_path: Path) -> None:
    write_tar(tmp_path / "out" / "0.tar", samples("k"))
    write_files(tmp_path, {"in/a.jpg": b"1"})
    (tmp_path / "in" / "tars").symlink_to(tmp_path / "out")
    assert ids(tmp_path / "in") == ["tars/0/k"]


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    [image] = images(tmp_path)
    assert (image.image_id, image.data) == ("caf\\xe9.jpg", b"1")


# Parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(path: Path, columns: dict[str, pa.Array], rows_per_group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def cells(count: int) -> list[dict[str, Any]]:
    return [{"bytes": b"%d" % i, "path": f"dir/{i}.jpg"} for i in range(count)]


@pytest.mark.parametrize(
    ("name", "column", "path"),
    [
        ("image", pa.array(cells(11), STRUCT), "7.jpg"),
        ("images", pa.array([[cell, {"bytes": b"no", "path": None}] for cell in cells(11)], pa.list_(STRUCT)), "7.jpg"),
        ("jpg", pa.array([c["bytes"] for c in cells(11)], pa.binary()), None),
        ("bytes", pa.array([c["bytes"] for c in cells(11)], pa.large_binary()), None),
        ("the picture", pa.array(cells(11), STRUCT), "7.jpg"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_parquet_image_columns(tmp_path: Path, name: str, column: pa.Array, path: str | None, size: int) -> None:
    write_parquet(tmp_path / "sub" / "p.parquet", {name: column, "caption": pa.array([f"c{i}" for i in range(11)])})
    got = images(tmp_path, size)
    assert [(i.image_id, i.data, i.caption) for i in got] == [(f"sub/p/{i}", b"%d" % i, f"c{i}") for i in range(11)]
    assert got[7].path == path


@pytest.mark.parametrize("name", ["image_id", "key", "id", "__key__"])
def test_parquet_ids_and_texts(tmp_path: Path, name: str) -> None:
    columns = {"image": pa.array(cells(3), STRUCT), name: pa.array([30, 10, 20]), "url": pa.array(["u", None, "w"])}
    write_parquet(tmp_path / "p.parquet", {**columns, "txt": pa.array(["x", "y", None])})
    assert [(i.image_id, i.url, i.caption) for i in images(tmp_path)] == [
        ("30", "u", "x"),
        ("10", None, "y"),
        ("20", "w", None),
    ]


def test_a_row_without_an_image_counts(tmp_path: Path) -> None:
    column = pa.array([{"bytes": None, "path": "x.jpg"}, None, {"bytes": b"1", "path": None}], STRUCT)
    write_parquet(tmp_path / "p.parquet", {"image": column})
    [shard] = shards(tmp_path)
    assert [i.data for i in shard.read()] == [b"", b"", b"1"]
    assert shard.count == 3


@pytest.mark.parametrize(("values", "message"), [(["a", None], "null in row 1"), (["a", "a"], "'a' 2 times")])
def test_parquet_ids_that_identify_nothing(tmp_path: Path, values: list[str | None], message: str) -> None:
    write_parquet(tmp_path / "p.parquet", {"image": pa.array(cells(2), STRUCT), "id": pa.array(values)})
    with pytest.raises(UsageError, match=message):
        shards(tmp_path)


def test_parquet_without_a_clear_image_column(tmp_path: Path) -> None:
    binary = pa.array([b"1"])
    write_parquet(tmp_path / "p.parquet", {"left": binary, "right": binary, "n": pa.array([1])})
    with pytest.raises(UsageError, match=r"left: binary, right: binary, n: int64"):
        shards(tmp_path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": pa.array(cells(4), STRUCT)})
    whole = path.read_bytes()
    for data in (b"", b"<html>", whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="download it again"):
            shards(tmp_path)


def test_parquet_is_streamed(tmp_path: Path) -> None:
    """Neither the index nor a read holds a row group."""
    blob = os.urandom(1 << 20)
    rows = pa.array([blob[i:] + blob[:i] for i in range(64)])
    # Pages of 4 rows: a page is what cannot be read in part.
    pq.write_table(pa.table({"image": rows}), tmp_path / "p.parquet", use_dictionary=False, write_batch_size=4)
    del rows
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    [shard] = shards(tmp_path)
    assert pool.bytes_allocated() - before < 8 << 20
    most = 0
    for image in shard.read():
        most = max(most, pool.bytes_allocated() - before)
        assert len(image.data) == 1 << 20
    assert most < 48 << 20


# Specs


def test_tars_before_images_before_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": pa.array(cells(1), STRUCT)})
    assert ids(tmp_path) == ["a/0"]
    write_files(tmp_path, {"b.jpg": b"1"})
    assert ids(tmp_path) == ["b.jpg"]
    write_tar(tmp_path / "deep" / "er" / "z.tar", samples("k"))
    assert ids(tmp_path) == ["deep/er/z/k"]


def test_single_files_and_globs(tmp_path: Path) -> None:
    write_files(tmp_path, {"in/a.jpg": b"1", "in/a.txt": b"cat", "in/x/b.jpg": b"2", "in/.c.jpg": b"3"})
    write_tar(tmp_path / "t" / "0.tar", samples("k"))
    write_parquet(tmp_path / "p" / "0.parquet", {"image": pa.array(cells(1), STRUCT)})
    assert images(tmp_path / "in" / "a.jpg") == [SourceImage("a.jpg", b"1", "a.jpg", None, "cat")]
    assert ids(tmp_path / "in" / "*.jpg") == ["a.jpg"]
    assert ids(tmp_path / "in" / "**" / "*.jpg") == ["a.jpg", "x/b.jpg"]
    assert ids(tmp_path / "i*" / "*.jpg") == ["in/a.jpg"]
    assert ids(tmp_path / "t" / "0.tar") == ["0/k"]
    assert ids(tmp_path / "[tp]" / "*") == ["t/0/k"]
    assert ids(tmp_path / "p" / "*.parquet") == ["0/0"]
    assert ids((tmp_path / "in").as_uri()) == ["a.jpg", "x/b.jpg"]


def test_a_folder_named_like_a_glob(tmp_path: Path) -> None:
    write_files(tmp_path / "[2020] *", {"a.jpg": b"1"})
    assert ids(tmp_path / "[2020] *") == ["a.jpg"]


def test_relative_and_slashed_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"in/a.jpg": b"1"})
    monkeypatch.chdir(tmp_path)
    assert prints("in") == prints("./in/") == prints(tmp_path / "in") == prints((tmp_path / "in").as_uri())


@pytest.fixture
def memory() -> Iterator[str]:
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


@pytest.mark.parametrize("kind", ["tar", "files", "parquet"])
def test_memory_is_read_like_a_disk(tmp_path: Path, memory: str, kind: str) -> None:
    if kind == "tar":
        write_tar(tmp_path / "s" / "0.tar", {**sample("a", "x", {"url": "u"}), **sample("b")})
    elif kind == "files":
        write_files(tmp_path, {"a.jpg": b"1", "s/b.png": b"2", "s/b.txt": b"t"})
    else:
        write_parquet(tmp_path / "s" / "p.parquet", {"image": pa.array(cells(9), STRUCT)})
    fs = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.*"):
        fs.pipe_file(f"{memory}/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    assert images(memory, 2) == images(tmp_path, 2)
    assert images(f"{memory}/**", 2) == images(tmp_path, 2)
    assert [s.name for s in shards(memory, 2)] == [s.name for s in shards(tmp_path, 2)]


def test_what_is_not_there(tmp_path: Path) -> None:
    write_files(tmp_path, {"in/notes.md": b"x", ".hidden.jpg": b"x"})
    for spec, message in (
        (tmp_path / "nope", r"nothing is at .*nope.*\.tar.*jpg, jpeg.*parquet"),
        (tmp_path / "*.jpg", r"no file matches .*\*\.jpg"),
        (tmp_path / "in", r"no images in .*jpg, jpeg, .*mpo, png, .*webp, gif, bmp, tif, tiff, ppm"),
        (tmp_path / "in" / "notes.md", r"no images in .*notes\.md"),
        ("", "nothing is at ''"),
        ("nosuchprotocol://x", "cannot open nosuchprotocol"),
    ):
        with pytest.raises(UsageError, match=message):
            open_source(str(spec), shard_size=1)
    with pytest.raises(ValueError, match="shard_size"):
        open_source(str(tmp_path), shard_size=0)


def test_tars_without_a_single_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", {"a.txt": b"x"})
    with pytest.raises(UsageError, match="no images"):
        open_source(str(tmp_path), shard_size=1)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "t.tar", samples("a"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for method in ("open", "ls"):
        with monkeypatch.context() as patch:
            patch.setattr(fsspec.implementations.local.LocalFileSystem, method, refuse)
            with pytest.raises(UsageError, match=f"no permission to read {tmp_path}"):
                shards(tmp_path)


# Shards


def every_kind(root: Path) -> list[Path]:
    write_tar(root / "tar" / "0.tar", {**sample("a", "x"), **samples("b", "c", "d", "e")})
    write_files(root / "files", {f"{name}.jpg": name.encode() for name in "abcde"})
    write_parquet(root / "rows" / "p.parquet", {"image": pa.array(cells(5), STRUCT)})
    keyed = {"image": pa.array(cells(5), STRUCT), "key": pa.array(list("abcde"))}
    write_parquet(root / "keyed" / "p.parquet", keyed)
    return [root / name for name in ("tar", "files", "rows", "keyed")]


def test_shards_are_the_same_every_time_and_in_other_processes(tmp_path: Path) -> None:
    for spec in every_kind(tmp_path):
        first, second = shards(spec, 2), shards(spec, 2)
        assert first == second
        assert [s.count for s in first] == [2, 2, 1]
        assert len({s.fingerprint for s in first}) == len({s.name for s in first}) == 3
        assert [list(pickle.loads(pickle.dumps(s)).read()) for s in first] == [list(s.read()) for s in second]
        assert list(first[1].read()) == list(first[1].read()) == images(spec)[2:4]
        assert all(s.count == len(list(s.read())) for s in first)


def test_head_and_limit(tmp_path: Path) -> None:
    for spec in every_kind(tmp_path):
        whole = images(spec)
        shard = shards(spec, 4)[0]
        head = shard.head(3)
        assert (head.name, head.count, list(head.read())) == (shard.name, 3, whole[:3])
        assert head.fingerprint == shard.fingerprint
        assert shard.head(4) == shard.head(9) == shard
        assert (shard.head(0).count, list(shard.head(0).read())) == (0, [])
        with pytest.raises(ValueError, match="count"):
            shard.head(-1)
        for limit in (0, 1, 2, 3, 4, 5, 6, None):
            limited = list(with_limit(open_source(str(spec), shard_size=2), limit))
            assert [i for s in limited for i in s.read()] == whole[:limit]
            assert all(s.count for s in limited)
    with pytest.raises(ValueError, match="limit"):
        list(with_limit([], -1))


def test_limit_asks_for_no_more_shards_than_it_needs(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", samples("a", "b"))
    write_files(tmp_path, {"1.tar": b"damaged"})
    assert [s.count for s in with_limit(open_source(str(tmp_path), shard_size=2), 2)] == [2]


def test_fingerprint_of_tars_changes_with_what_is_in_them_only(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", samples("a", "b"))
    before = prints(tmp_path)
    os.utime(path, (1, 1))
    write_tar(tmp_path / "1.tar", samples("z"))
    assert prints(tmp_path)[:1] == before
    write_tar(path, samples("a", "b"), tarfile.PAX_FORMAT)
    assert prints(tmp_path)[:1] == before
    seen = {before[0]}
    for members in (
        samples("a"),
        samples("a", "c"),
        samples("b", "a"),
        {**samples("a", "b"), "b.jpg": b"longer than before"},
        {**sample("a", "caption"), **sample("b")},
    ):
        write_tar(path, members)
        seen.add(prints(tmp_path)[0])
    assert len(seen) == 6


def test_fingerprint_of_files_changes_with_their_shard_only(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{name}.jpg": b"1" for name in "abcd"})
    first, second = prints(tmp_path, 2)
    os.utime(tmp_path / "a.jpg", (1, 1))
    write_files(tmp_path, {"notes.md": b"x", "d.jpg": b"longer"})
    changed = prints(tmp_path, 2)
    assert changed[0] == first
    assert changed[1] != second
    write_files(tmp_path, {"a.txt": b"caption"})
    assert prints(tmp_path, 2)[0] != first


def test_fingerprint_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    seen: set[str] = set()
    for columns in (
        {"image": pa.array(cells(3), STRUCT)},
        {"image": pa.array(cells(4), STRUCT)},
        {"image": pa.array(cells(3), STRUCT), "id": pa.array(["a", "b", "c"])},
        {"image": pa.array(cells(3), STRUCT), "id": pa.array(["a", "b", "d"])},
    ):
        write_parquet(path, columns)
        os.utime(path, (1, 1))
        before = prints(tmp_path)
        os.utime(path)
        assert prints(tmp_path) == before
        seen.update(before)
    assert len(seen) == 4


def test_shards_hold_references_not_bytes(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {f"{i}.jpg": bytes(1 << 20) for i in range(32)})
    tracemalloc.start()
    try:
        kept = shards(tmp_path, 4)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        read = sum(len(image.data) for shard in kept for image in shard.read())
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert read == 32 << 20
