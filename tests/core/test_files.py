"""Every reader of a file that the user names refuses at once what is not a regular file."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialog_eval.data.coco import load_file_names
from dialog_eval.results import load_results
from dialog_gen.clip.loader import load_clip, new_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import absolute, check_regular, name_key, open_regular, read_regular
from dialog_gen.core.tensors import load_tensors
from dialog_gen.download.manifests import load_manifest
from dialog_gen.gates.settings import load_gates
from dialog_gen.models.folder import read_config
from dialog_gen.protocols.protocol import load_protocol
from dialog_gen.sources.base import open_source
from dialog_train.api import load_recipe
from dialog_train.data.derived import read_json


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


MAKERS = [make_pipe, make_device, Path.mkdir]


@pytest.mark.parametrize("make", [*MAKERS, make_socket])
@pytest.mark.parametrize("read", [open_regular, read_regular, check_regular, load_tensors])
def test_only_regular_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], read: Callable[[Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make(Path("x"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=r"not a regular file, but a|Is a directory|No such device"):
        read(Path("x"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "link").symlink_to("x")
    assert read_regular(tmp_path / "link") == b"content"
    with open_regular(tmp_path / "x") as file:
        assert os.get_blocking(file.fileno())
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "y")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.toml", lambda path: load_manifest(str(path))),
        ("x.csv", lambda path: load_manifest(str(path))),
        ("x.toml", lambda path: load_protocol(str(path))),
        ("x.toml", lambda path: load_gates(str(path))),
        ("x.toml", lambda path: load_recipe(str(path))),
        ("x.tar", lambda path: open_source(str(path), shard_size=1)),
        ("x.parquet", lambda path: open_source(str(path), shard_size=1)),
        ("x.json", load_results),
        ("x.json", load_file_names),
        ("x.json", lambda path: read_json(path, "thing")),
        ("x.json", lambda path: new_clip(str(path), 0)),
        ("config.json", lambda path: read_config(path.parent)),
        ("open_clip_config.json", lambda path: load_clip(str(path.parent))),
    ],
)
def test_every_reader_refuses_at_once(
    tmp_path: Path, make: Callable[[Path], None], name: str, read: Callable[[Path], Any]
) -> None:
    make(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        read(tmp_path / name)
    assert str(tmp_path) in str(caught.value)


def test_names_that_some_file_systems_do_not_distinguish() -> None:
    assert name_key("Stra\u00dfe/A.tar") == name_key("STRASSE/a.TAR")
    assert name_key("u\u0308.tar") == name_key("\u00fc.tar")
    assert name_key("a.tar") != name_key("b.tar")


def test_a_folder_has_one_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever it is named; `..` behind a symbolic link is where the link leads, as the system reads it."""
    (tmp_path / "project").mkdir()
    (tmp_path / "far" / "in").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "in")
    monkeypatch.chdir(tmp_path / "project")
    assert absolute("../images") == absolute("./../images/") == str(tmp_path / "images")
    assert absolute("../nothing/../here") == str(tmp_path / "here")
    assert absolute("../link") == str(tmp_path / "link")
    assert absolute("../link/../in") == str((tmp_path / "far" / "in").resolve())
    assert absolute("s3://bucket/../images") == "s3://bucket/../images"
