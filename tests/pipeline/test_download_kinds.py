"""Kinds of downloads: those that other packages add, and the one function that all are called by."""

import json
from pathlib import Path

import pytest
from helpers.file_server import FileServer
from helpers.plugins import dialog_gen_with, write_plugin

from dialog_gen.core.errors import UsageError
from dialog_gen.download.manifests import load_manifest
from dialog_gen.download.run import download_images

PLUGIN = """
from typing import ClassVar
from dialog_gen.download.manifests import DOWNLOADS, DownloadSource, DownloadSummary

class Written(DownloadSummary):
    def __init__(self, count):
        self.count = count
    def __str__(self):
        return f"{self.count} files"
    def to_json(self):
        return {"written": self.count}

@DOWNLOADS.register("noise")
class Noise(DownloadSource):
    draws_images: ClassVar[bool] = True
    letter: str
    @property
    def splits(self):
        return ("all", "half")
    def download(self, request):
        count = request.limit or 4
        for number in range(count):
            path = request.out / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(self.letter * (request.seed + 1))
            request.on_progress("writing", number + 1, count)
        return Written(count)
"""
MANIFEST = 'description = "Noise"\nlicence = "CC0-1.0"\nsource = { kind = "noise", letter = "n" }\n'


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(MANIFEST)
    return write_plugin(tmp_path, {"a_plugin": PLUGIN}, "[dialog_gen.downloads]\nnoise = a_plugin\n")


def test_a_kind_of_another_package_downloads(plugin: Path) -> None:
    ended = dialog_gen_with(plugin, "download", "mine.toml", "--out", "out", "--limit", "2", "--seed", "2", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == {"written": 2}
    assert {path.name: path.read_text() for path in (plugin / "out").glob("*.txt")} == {"0.txt": "nnn", "1.txt": "nnn"}
    assert json.loads((plugin / "out" / "manifest.json").read_text())["description"] == "Noise"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("letter", "lettre", "source: letter: Field required; lettre: unknown key; did you mean 'letter'"),
        (
            "noise",
            "nose",
            "source: unknown kind 'nose'; did you mean 'noise'? Known: archives, embedded, noise, urls, web",
        ),
    ],
)
def test_mistakes_in_its_manifest_are_explained(plugin: Path, old: str, new: str, message: str) -> None:
    (plugin / "mine.toml").write_text(MANIFEST.replace(old, new))
    ended = dialog_gen_with(plugin, "download", "mine.toml", "--out", "out")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert f"error: manifest file mine.toml: {message}" in ended.stderr


def test_a_broken_package_is_named_only_where_it_is_asked_for(plugin: Path) -> None:
    (plugin / "a_plugin.py").write_text("import no_such_module_anywhere\n")
    ended = dialog_gen_with(plugin, "download", "mine.toml", "--out", "out")
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "error: download 'noise' of the package a-plugin cannot be imported (a_plugin)" in ended.stderr
    assert "Known: archives, " in ended.stderr
    assert not (plugin / "out").exists()
    assert dialog_gen_with(plugin, "manifests").returncode == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cc3m", {"split": "trian"}, "cc3m has no split 'trian': did you mean 'train'"),
        ("cc3m", {"seed": 1}, "--seed 1: cc3m is not drawn; leave it out"),
        ("mscoco", {"retry_failed": True}, "--retry-failed: mscoco is no list of URLs; leave it out"),
        ("mscoco", {"limit": 3}, "--limit 3: mscoco comes in archives"),
    ],
)
def test_wrong_use(tmp_path: Path, name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        download_images(load_manifest(name), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_progress_is_called_back(tmp_path: Path) -> None:
    data = bytes(2_500_000)
    toml = tmp_path / "mine.toml"
    told: list[tuple[str, int, int | None, str]] = []
    with FileServer({"data.bin": data}).serving() as server:
        toml.write_text(
            'description = "d"\nlicence = "l"\n[source]\nkind = "archives"\n'
            f'files = {{ all = [{{ url = "{server.url}/data.bin", into = "data" }}] }}\n'
        )
        summary = download_images(
            load_manifest(str(toml)),
            tmp_path / "out",
            allow_loopback=True,
            on_progress=lambda stage, done, total, unit="", note="": told.append((stage, done, total, unit)),
        )
    assert summary.to_json() == {
        "out": str(tmp_path / "out"), "files": 1, "fetched_bytes": len(data), "images": None, "uses": {},
    }  # fmt: skip
    assert {(stage, total, unit) for stage, _, total, unit in told} == {("data.bin", 3, "MB")}
    done = [done for _, done, _, _ in told]
    assert done == sorted(done)
    assert done[-1] == 3
    assert (tmp_path / "out" / "data" / "data.bin").read_bytes() == data
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["manifest"] == "mine"
