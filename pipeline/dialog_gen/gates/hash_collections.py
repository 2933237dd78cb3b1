"""Hash collections: lists and sets of 64-bit hashes at 8 bytes each, for datasets of a hundred million pairs."""

import hashlib
from array import array

import numpy as np
import numpy.typing as npt

from dialog_gen.core.hashing import hash_64
from dialog_gen.gates.base import Row

Hashes = npt.NDArray[np.uint64]


class HashList:
    """A list that only grows."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def append(self, value: int) -> None:
        """Adds a hash."""
        self._hashes.append(value)

    def take(self) -> Hashes:
        """All hashes; empties the list."""
        taken, self._hashes = self._hashes, array("Q")
        return np.frombuffer(taken, np.uint64)


class HashSet:
    """A set that only grows: a sorted array, and a small set of the latest hashes."""

    def __init__(self, merge_at: int = 1 << 17) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent = set[int]()
        self._merge_at = merge_at

    def add(self, value: int) -> bool:
        """Adds a hash; returns whether it is new."""
        if value in self._recent or index_in(self._sorted, value) is not None:
            return False
        self._recent.add(value)
        if len(self._recent) == self._merge_at:
            recent = np.fromiter(self._recent, np.uint64, self._merge_at)
            self._sorted, self._recent = np.sort(np.concatenate([self._sorted, recent])), set()
        return True


def index_in(hashes: Hashes, value: int) -> int | None:
    """The index of a hash in a sorted array; None if it is not there."""
    index = int(np.searchsorted(hashes, np.uint64(value)))
    return index if index < len(hashes) and hashes[index] == value else None


def hash_of_pair(row: Row, place: int) -> int:
    """A hash by which the pairs of a dataset have an order as good as random, whatever the order of its shards."""
    return hash_64(f"{row['image_id']}/{place}")


def sha256_of_arrays(*arrays: npt.NDArray[np.generic]) -> str:
    """Hash of types, shapes and contents of arrays, in hex."""
    digest = hashlib.sha256()
    for each in arrays:
        digest.update(f"{each.dtype}{each.shape}".encode())
        digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()
