"""Pairs that occur many times in the dataset."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dialog_gen.core.hashing import hash_64
from dialog_gen.gates.base import GATES, Limit, Limits, Row, Scores, SetGate
from dialog_gen.gates.hash_collections import Hashes, HashList, HashSet, hash_of_pair, index_in, sha256_of_arrays
from dialog_gen.gates.words import pair_text, shingles, words

_PERMUTATIONS = 128
_EDGES_AT_ONCE = 1 << 16


class SetDuplicateSettings(Limits):
    """How many nearly identical pairs are kept, and which pairs count as nearly identical."""

    max: Limit = 10.0
    similarity: float = Field(default=0.95, ge=0.5, le=0.98)
    """Jaccard similarity from which two pairs count as nearly identical."""
    least_words: int = Field(default=12, ge=1)
    """Minimum number of words of question and answer together. Shorter pairs are often alike by chance: no score."""


@GATES.register("set_duplicate")
class SetDuplicate(SetGate[SetDuplicateSettings]):
    """The pair's place among the pairs of the dataset that are nearly identical to it: 1 for the first.

    Pairs with the same words are identical. Pairs whose shingles (`words.shingles`) have a Jaccard similarity of about
    `similarity` or more are nearly identical. They are found by MinHash and locality-sensitive hashing (Leskovec,
    Rajaraman and Ullman, Mining of Massive Datasets, chapter 3): signatures of 128 hashes are cut into bands; texts
    that agree in a band, and also in the fraction `similarity` of the signature's hashes (their lowest bytes, arXiv
    0910.3349), form a group. Places in a group follow a hash of image and pair, so they are pseudorandom: `max = 10`
    keeps ten pairs of each group. Three copies of a pair score 1, 2 and 3; a unique pair scores 1. None for pairs of
    fewer than `least_words` words.

    Memory, for pairs that are long enough: 16 bytes per pair; each distinct pair takes 144 bytes more, and 8 bytes per
    band (a similarity of 0.95 has 5 bands: 200 bytes in all). The memory doubles briefly when the survey ends; after
    that, unique pairs take none.
    """

    description = "place among the pairs of the dataset that are nearly identical to it; 1 for the first"
    settings_class = SetDuplicateSettings
    unscored = "it scores pairs of {least_words} words or more, question and answer together (least_words)"
    columns = ("image_id", "texts")
    libraries = ("datasketch",)
    order = 60

    def __init__(self, settings: SetDuplicateSettings, dataset_config: Mapping[str, Any]) -> None:
        from datasketch import MinHash, MinHashLSH

        super().__init__(settings, dataset_config)
        # Weighted against missed pairs: false candidates are harmless, since signatures are compared afterwards.
        best = MinHashLSH(threshold=settings.similarity, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
        self._bands, self._rows = best.b, best.r
        # CRC-32 has no collisions for short ASCII shingles, and is three times as fast as the library's SHA-1.
        self._minhash = MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        self._seen, self._band_hashes, self._signatures = HashSet(), HashList(), bytearray()
        self._distinct_texts, self._pair_texts, self._pairs = HashList(), HashList(), HashList()

    def survey(self, rows: Sequence[Row]) -> None:
        """Computes the signature of each distinct text, and records every pair."""
        for row in rows:
            for place, pair in enumerate(row["texts"]):
                if (text := self._text_hash(pair)) is None:
                    continue
                self._pair_texts.append(text)
                self._pairs.append(hash_of_pair(row, place))
                if self._seen.add(text):
                    self._distinct_texts.append(text)
                    self._sign(pair)

    def settle(self) -> str:
        """Groups the texts; returns a hash of the groups that have several pairs."""
        self._seen = HashSet()
        texts = self._distinct_texts.take()
        order = np.argsort(texts)
        # Sorted, so that the hash does not depend on the order of the survey.
        texts, bands = texts[order], self._band_hashes.take().reshape(-1, self._bands)[order]
        signatures = np.frombuffer(self._signatures, np.uint8).reshape(-1, _PERMUTATIONS)[order]
        self._signatures = bytearray()
        groups = self._groups_of(bands, signatures)
        pair_groups = groups[np.searchsorted(texts, self._pair_texts.take())]
        # Unique pairs are not stored: a pair that is not found later is the only one of its group.
        shared = np.bincount(pair_groups, minlength=len(texts)) > 1
        numbers = np.cumsum(shared) - 1
        of_shared = shared[pair_groups]
        pairs, pair_groups = self._pairs.take()[of_shared], numbers[pair_groups[of_shared]]
        order = np.lexsort((pairs, pair_groups))
        self._ordered = pairs[order]
        self._starts = np.searchsorted(pair_groups[order], np.arange(np.count_nonzero(shared) + 1))
        self._texts, self._groups = texts[shared[groups]], numbers[groups[shared[groups]]]
        return sha256_of_arrays(self._texts, self._groups, self._ordered)

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return [self._score(row, place) for place in range(len(row["texts"]))]

    def _score(self, row: Row, place: int) -> float | None:
        text = self._text_hash(row["texts"][place])
        if text is None or (index := index_in(self._texts, text)) is None:
            return None if text is None else 1.0
        group = self._groups[index]
        group_pairs = self._ordered[self._starts[group] : self._starts[group + 1]]
        return 1.0 + float(np.searchsorted(group_pairs, np.uint64(hash_of_pair(row, place))))

    def _text_hash(self, pair: dict[str, str]) -> int | None:
        text = words(pair_text(pair))
        return hash_64(" ".join(text)) if len(text) >= self.settings.least_words else None

    def _sign(self, pair: dict[str, str]) -> None:
        self._minhash.clear()
        self._minhash.update_batch([shingle.encode() for shingle in shingles(pair_text(pair))])
        signature = self._minhash.hashvalues
        self._signatures += signature.astype(np.uint8).tobytes()
        for start in range(0, self._bands * self._rows, self._rows):
            self._band_hashes.append(hash_64(signature[start : start + self._rows].tobytes().hex()))

    def _groups_of(self, bands: Hashes, signatures: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """The group number of each text, from `bands` (n_texts, n_bands) and `signatures` (n_texts, 128)."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        joined = [np.empty((2, 0), np.int64)]
        for i in range(self._bands):
            # Among texts that agree in this band, those that also agree in the previous one become neighbours.
            order = np.lexsort((bands[:, i - 1], bands[:, i]))
            ordered = bands[order, i]
            same = np.flatnonzero(ordered[1:] == ordered[:-1])
            for start in range(0, len(same), _EDGES_AT_ONCE):
                some = same[start : start + _EDGES_AT_ONCE]
                ends = np.stack([order[some], order[some + 1]])
                alike = (signatures[ends[0]] == signatures[ends[1]]).mean(axis=1) >= self.settings.similarity
                joined.append(ends[:, alike])
        first, second = np.concatenate(joined, axis=1)
        edges = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(bands), len(bands)))
        return connected_components(edges, directed=False)[1]
