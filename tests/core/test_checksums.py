"""Folders with checksums: what is not as it was written is named."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from dialog_gen.core.checksums import CHECKSUMS_FILE, check_checksums, write_checksums
from dialog_gen.core.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(200)))
    (tmp_path / "sub" / "config.json").write_text("{}")
    (tmp_path / "notes.toml").write_text("a = 1")
    write_checksums(tmp_path, free={"notes.toml"})
    return tmp_path


def test_an_intact_folder(folder: Path) -> None:
    check_checksums(folder)
    recorded = json.loads((folder / CHECKSUMS_FILE).read_text())
    assert recorded == {
        "sub/config.json": {"size": 2, "sha256": sha256(b"{}").hexdigest()},
        "weights": {"size": 200, "sha256": sha256(bytes(range(200))).hexdigest()},
    }
    (folder / "notes.toml").write_text("a = 2")
    (folder / "added").write_text("later")
    check_checksums(folder)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: list[Callable[[Path], None]] = [
    _flip,
    _directory,
    Path.unlink,
    lambda file: os.truncate(file, 1),
    lambda file: os.truncate(file, 0),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights", "sub/config.json"])
def test_damage_is_named(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(UsageError, match=rf"{name} .*\. If the file was changed on purpose, remove .*checksums.json"):
        check_checksums(folder)
    with pytest.raises(UsageError, match=name):
        check_checksums(folder, name)
    check_checksums(folder, "weights" if name != "weights" else "sub/config.json")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weights": 3}', '{"weights": {"size": 200}}', "[" * 100_000])
def test_damaged_checksums(folder: Path, content: str) -> None:
    (folder / CHECKSUMS_FILE).write_text(content)
    with pytest.raises(UsageError, match=r"checksums\.json is damaged"):
        check_checksums(folder)


def test_a_folder_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"any")
    check_checksums(tmp_path)
    check_checksums(tmp_path, "weights")
