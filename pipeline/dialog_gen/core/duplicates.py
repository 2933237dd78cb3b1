"""Finds duplicates among any number of texts, with bounded memory."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

import numpy as np

from dialog_gen.core.hashing import hash_64

_FILES: Final = 256
_HASHES_IN_MEMORY: Final = 1 << 20


class DuplicateFinder:
    """Collects 64-bit hashes of texts; finds those that occur more than once.

    Up to a million hashes stay in memory. More are kept in a temporary folder, divided into 256 files by their first
    byte, and the files are examined one by one: 100 million texts take 0.8 GB of disk and 4 MB of memory at a time.
    Different texts can have equal hashes, so a hash that occurs twice is a suspicion that the caller has to check.
    """

    def __init__(self) -> None:
        self._recent: list[int] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, texts: Iterable[str]) -> None:
        """Adds texts. Raises OSError if the temporary folder is full."""
        for text in texts:
            self._recent.append(hash_64(text))
            if len(self._recent) == _HASHES_IN_MEMORY:
                self._spill()

    def suspects(self, limit: int | None = None) -> set[int]:
        """The hashes (`hash_64`) that were added more than once; at most `limit` of them, the smallest.

        Raises OSError if the temporary folder is full.
        """
        if self._folder is None:
            return set(_repeated(np.array(self._recent, np.uint64))[:limit].tolist())
        self._spill()
        found = set[int]()
        for file in sorted(Path(self._folder.name).iterdir()):
            left = None if limit is None else limit - len(found)
            if left == 0:
                break
            found.update(_repeated(np.fromfile(file, np.uint64))[:left].tolist())
        return found

    def _spill(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="dialog-gen-")
        hashes = np.sort(np.array(self._recent, np.uint64))
        self._recent = []
        first_bytes = hashes >> np.uint64(56)
        bounds = np.searchsorted(first_bytes, np.arange(_FILES + 1, dtype=np.uint64))
        for number in range(_FILES):
            if bounds[number] < bounds[number + 1]:
                with (Path(self._folder.name) / f"{number:02x}").open("ab") as file:
                    hashes[bounds[number] : bounds[number + 1]].tofile(file)


def _repeated(hashes: np.ndarray) -> np.ndarray:
    values, counts = np.unique(hashes, return_counts=True)
    return values[counts > 1]
