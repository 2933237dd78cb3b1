"""Duplicates among texts, in memory and on disk."""

from pathlib import Path

import pytest

from dialog_gen.core import duplicates
from dialog_gen.core.duplicates import DuplicateFinder
from dialog_gen.core.hashing import hash_64


@pytest.mark.parametrize("in_memory", [7, 1 << 20], ids=["on disk", "in memory"])
def test_duplicates_are_found_wherever_they_are(monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(duplicates, "_HASHES_IN_MEMORY", in_memory)
    with DuplicateFinder() as finder:
        finder.add(str(number) for number in range(3000))
        assert finder.suspects() == set()
        finder.add(["0", "1234", "2999", "2999"])
        assert finder.suspects() == {hash_64(text) for text in ("0", "1234", "2999")}


def test_no_texts_have_no_duplicates() -> None:
    assert DuplicateFinder().suspects() == set()


def test_the_temporary_folder_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(duplicates, "_HASHES_IN_MEMORY", 2)
    monkeypatch.setattr(duplicates.tempfile, "tempdir", str(tmp_path))
    with DuplicateFinder() as finder:
        finder.add("abcde")
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())
