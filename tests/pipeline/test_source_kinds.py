"""Kinds of image sources: what shards are called and stand for, and kinds that other packages add."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.inputs import png
from helpers.plugins import dialog_gen_with, write_plugin

from dialog_gen.sources.base import open_source

PLUGIN = '''
import csv
from dialog_gen.sources.base import SOURCES, ImageReference, SourceImage, SourcePart

class Described(SourcePart):
    """Images named in a table or an address; their ids are what is named."""
    def __init__(self, name, paths):
        self.name, self.paths = name, paths
    def identity(self):
        return self.name
    def shard_name(self, number):
        return f"described-{number}"
    def index(self):
        yield from (ImageReference(path) for path in self.paths)
    def read(self, references):
        for reference in references:
            with open(reference.image_id, "rb") as file:
                yield SourceImage(reference.image_id, file.read())

@SOURCES.register("csv")
class Csv(Described):
    accepted = "*.csv (paths of images)"
    extensions = ("csv",)
    @classmethod
    def of_files(cls, files):
        for file in files.files():
            if file.extension == "csv":
                with files.open(file.path) as table:
                    yield cls(file.path, [row[0] for row in csv.reader(table.read().decode().splitlines())])

class Address(Described):
    accepted = "mysource://PATH"
    schemes = ("mysource",)
    @classmethod
    def of_url(cls, url):
        yield cls(url, [url.partition("://")[2]])
'''
ENTRY_POINTS = "[dialog_gen.sources]\ncsv = a_plugin\naddress = a_plugin:Address\n"


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "one.png").write_bytes(png(1))
    (tmp_path / "two.png").write_bytes(png(2))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "three.png").write_bytes(png(3))
    for table in (tmp_path / "images.csv", tmp_path / "folder" / "images.csv"):
        table.write_text("two.png\none.png\n")
    return write_plugin(tmp_path, {"a_plugin": PLUGIN}, ENTRY_POINTS)


def dry_run(plugin: Path, images: str) -> tuple[int, str, str]:
    ended = dialog_gen_with(
        plugin, "run", "--dry-run", "--model", "shapes-llava", "--engine", "transformers", "--images", images,
        "--out", "out",
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("images", "count", "first"), [("images.csv", 2, "two.png"), ("mysource://one.png", 1, "one.png")]
)
def test_a_kind_of_another_package_is_read(plugin: Path, images: str, count: int, first: str) -> None:
    code, out, err = dry_run(plugin, images)
    assert (code, err) == (0, "")
    assert f"  {count} image{'s' * (count != 1)} in 1 shard" in out
    assert f"\n  {first} ({len(png(1))} bytes)\n" in out


def test_our_kinds_come_first(plugin: Path) -> None:
    code, out, _ = dry_run(plugin, "folder")
    assert (code, "  1 image in 1 shard" in out, "\n  three.png (" in out) == (0, True, True)


def test_the_accepted_forms_are_those_of_all_kinds(plugin: Path) -> None:
    code, out, err = dry_run(plugin, "nothing-here")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "expected *.tar, *.tar.gz (webdataset), image files (jpg, jpeg" in err
    assert "*.parquet, mysource://PATH or *.csv (paths of images); in a folder, a glob or a URL" in err


@pytest.mark.parametrize("images", ["images.csv", "nosuch://x", "nothing-here"])
def test_a_broken_package_is_named(plugin: Path, images: str) -> None:
    (plugin / "a_plugin.py").write_text("import no_such_module_anywhere\n")
    code, out, err = dry_run(plugin, images)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "error: image source 'address' of the package a-plugin cannot be imported (a_plugin:Address)" in err
    assert "No module named 'no_such_module_anywhere'" in err
    assert "Known: images, parquet, webdataset, csv." in err


def test_a_broken_package_breaks_nothing_else(plugin: Path) -> None:
    (plugin / "a_plugin.py").write_text("import no_such_module_anywhere\n")
    assert dry_run(plugin, "folder")[0] == 0


@pytest.fixture
def stored() -> Iterator[str]:
    """Sources at addresses that are the same every time."""
    root = "memory://same-every-time"
    fs = fsspec.filesystem("memory")
    tar = io.BytesIO()
    members = {"000.jpg": b"abc", "000.txt": b"a cat", "000.json": b"{}", "001.png": b"defg", "d/002.jpg": b"x"}
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    fs.pipe_file(f"{root}/tars/a/é 0.tar", tar.getvalue())
    for name, data in {"a/1.jpg": b"one", "a/1.txt": b"I", "b.PNG": b"three", "c.gif": b""}.items():
        fs.pipe_file(f"{root}/files/{name}", data)
    table = io.BytesIO()
    pq.write_table(pa.table({"image": [b"a", b"bb", b"c"], "image_id": ["x", "y", "z"]}), table)
    fs.pipe_file(f"{root}/keyed/p.parquet", table.getvalue())
    pq.write_table(pa.table({"jpg": [b"a"]}), table := io.BytesIO())
    fs.pipe_file(f"{root}/rows/q.parquet", table.getvalue())
    yield root
    fs.rm(root, recursive=True)


def fingerprint(identity: object, *images: tuple[str, tuple[int | None, ...]]) -> str:
    """As it has been since the first version: datasets are continued by it."""
    return hashlib.sha256("".join(json.dumps(fact) + "\n" for fact in (identity, *images)).encode()).hexdigest()


# Of the first two kinds, as the code gave them before kinds registered themselves.
GOLDEN = [
    "cf832eeeb9f3611fc033193dee473ed3a5c0d30beae3041d84f0405f48f89bf3",
    "fc81520377a06eb3fc668068c0bec2a7c9d8e3c3b6745f9093d452bad2e10495",
    "1cf07fddc72ccc772fbfe8e4a43a66bd5ae5e28bdd8d473611ab16ab6f882019",
    "51930c005785e594c9bcbade73636a7eaafec6d46d8ba1000f1b6676a81ecf01",
]


def test_names_and_fingerprints_stay_what_they_were(stored: str) -> None:
    root = "memory:///same-every-time"
    keyed, rows = (
        [f"{root}/{name}", fsspec.filesystem("memory").size(f"{stored}/{name}")]
        for name in ("keyed/p.parquet", "rows/q.parquet")
    )
    tar = f"{root}/tars/a/é 0.tar"
    mark = hashlib.sha256("a/é 0".encode()).hexdigest()[:8]
    expected = {
        "tars": [
            (f"a___0-{mark}-000", fingerprint(tar, ("a/é 0/000", (3, 5, 2)), ("a/é 0/001", (4, None, None)))),
            (f"a___0-{mark}-001", fingerprint(tar, ("a/é 0/d/002", (1, None, None)))),
        ],
        "files": [
            ("images-000000", fingerprint(f"{root}/files", ("a/1.jpg", (3, 1)), ("b.PNG", (5, None)))),
            ("images-000001", fingerprint(f"{root}/files", ("c.gif", (0, None)))),
        ],
        "keyed": [
            ("p-000", fingerprint(keyed, ("x", ()), ("y", ()))),
            ("p-001", fingerprint(keyed, ("z", ()))),
        ],
        "rows": [("q-000", fingerprint(rows, ("q/0", ())))],
    }
    for name, shards in expected.items():
        found = [(shard.name, shard.fingerprint) for shard in open_source(f"{stored}/{name}", shard_size=2)]
        assert found == shards
    assert [print_ for shards in (expected["tars"], expected["files"]) for _, print_ in shards] == GOLDEN
