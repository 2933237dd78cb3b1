"""Lists and sets of 64-bit hashes with 8 bytes per hash, for datasets of a hundred million pairs."""

import hashlib
from array import array

import numpy as np
import numpy.typing as npt

from dialog_gen.core.hashing import hash_64
from dialog_gen.gates.base import Row

Hashes = npt.NDArray[np.uint64]


class HashList:
    """A list of hashes to which hashes can only be added."""

    def __init__(self) -> None:
        self._hashes = array("Q")

    def append(self, value: int) -> None:
        """Adds a hash."""
        self._hashes.append(value)

    def take(self) -> Hashes:
        """Returns all hashes and empties the list."""
        taken, self._hashes = self._hashes, array("Q")
        return np.frombuffer(taken, np.uint64)


class HashSet:
    """A set of hashes to which hashes can only be added: a sorted array, and a small set of the latest hashes."""

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
    """The index of a hash in a sorted array; None if the array does not contain it."""
    index = int(np.searchsorted(hashes, np.uint64(value)))
    return index if index < len(hashes) and hashes[index] == value else None


def hash_of_pair(row: Row, place: int) -> int:
    """A hash of image and pair. Sorting by it gives a pseudorandom order that does not depend on the shards' order."""
    return hash_64(f"{row['image_id']}/{place}")


def sha256_of_arrays(*arrays: npt.NDArray[np.generic]) -> str:
    """SHA-256 of the types, shapes and contents of arrays, in hexadecimal digits."""
    digest = hashlib.sha256()
    for each in arrays:
        digest.update(f"{each.dtype}{each.shape}".encode())
        digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()
