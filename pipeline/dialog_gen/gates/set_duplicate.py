"""Pairs that the dataset holds many times over."""

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dialog_gen.core.hashing import hash_64
from dialog_gen.gates.hash_collections import Hashes, HashList, HashSet, hash_of_pair, index_in, sha256_of_arrays
from dialog_gen.gates.scorer import Row, Scores
from dialog_gen.gates.settings import SetDuplicateSettings
from dialog_gen.gates.words import pair_text, shingles, words

_PERMUTATIONS = 128
_EDGES_AT_ONCE = 1 << 16


class SetDuplicate:
    """The pair's place among the pairs of the dataset that are nearly identical to it: 1 for the first.

    Pairs with the same words are identical. Those whose shingles (`words.shingles`) have a Jaccard similarity of about
    `similarity` or more are nearly so. They are found by MinHash and locality-sensitive hashing (Leskovec, Rajaraman
    and Ullman, Mining of Massive Datasets, chapter 3): signatures of 128 hashes are cut into bands; texts that agree in
    a band, and then in `similarity` of the signature's hashes (their lowest bytes, arXiv 0910.3349), are of one group.
    Places in a group follow a hash of image and pair, which is as good as random: `max = 10` leaves ten of each. Of
    three copies of a pair one scores 1, one 2 and one 3; a pair like no other scores 1. None for pairs of less than
    `least_words` words.

    Memory, of pairs that are long enough: 16 bytes a pair, and for each distinct one 144 more and 8 a band (0.95 has 5
    bands: 200 bytes in all). It doubles for a moment when the survey ends; of pairs like no other nothing is left then.
    """

    columns = ("image_id", "texts")

    def __init__(self, settings: SetDuplicateSettings) -> None:
        self._least_words, self._similarity = settings.least_words, settings.similarity
        # Rather too many candidates than too few: the signatures decide.
        best = MinHashLSH(threshold=settings.similarity, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
        self._bands, self._rows = best.b, best.r
        # Distinct for short ASCII shingles, and three times as fast as the library's SHA-1.
        self._minhash = MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        self._seen, self._band_hashes, self._signatures = HashSet(), HashList(), bytearray()
        self._distinct_texts, self._pair_texts, self._pairs = HashList(), HashList(), HashList()

    def survey(self, rows: Sequence[Row]) -> None:
        """See `SetScorer`."""
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
        """See `SetScorer`."""
        self._seen = HashSet()
        texts = self._distinct_texts.take()
        order = np.argsort(texts)
        # Whatever the order of the survey was.
        texts, bands = texts[order], self._band_hashes.take().reshape(-1, self._bands)[order]
        signatures = np.frombuffer(self._signatures, np.uint8).reshape(-1, _PERMUTATIONS)[order]
        self._signatures = bytearray()
        groups = self._groups_of(bands, signatures)
        pair_groups = groups[np.searchsorted(texts, self._pair_texts.take())]
        # A pair like no other needs no memory, nor a number: whatever is not found is the first and only one.
        shared = np.bincount(pair_groups, minlength=len(texts)) > 1
        numbers = np.cumsum(shared) - 1
        of_shared = shared[pair_groups]
        pairs, pair_groups = self._pairs.take()[of_shared], numbers[pair_groups[of_shared]]
        order = np.lexsort((pairs, pair_groups))
        self._ordered = pairs[order]
        self._starts = np.searchsorted(pair_groups[order], np.arange(np.count_nonzero(shared) + 1))
        self._texts, self._groups = texts[shared[groups]], numbers[groups[shared[groups]]]
        return sha256_of_arrays(self._texts, self._groups, self._ordered)

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """See `Scorer`."""
        return [[self._score(row, place) for place in range(len(row["texts"]))] for row in rows]

    def close(self) -> None:
        """See `Scorer`."""

    def _score(self, row: Row, place: int) -> float | None:
        text = self._text_hash(row["texts"][place])
        if text is None or (index := index_in(self._texts, text)) is None:
            return None if text is None else 1.0
        group = self._groups[index]
        group_pairs = self._ordered[self._starts[group] : self._starts[group + 1]]
        return 1.0 + float(np.searchsorted(group_pairs, np.uint64(hash_of_pair(row, place))))

    def _text_hash(self, pair: dict[str, str]) -> int | None:
        said = words(pair_text(pair))
        return hash_64(" ".join(said)) if len(said) >= self._least_words else None

    def _sign(self, pair: dict[str, str]) -> None:
        self._minhash.clear()
        self._minhash.update_batch([shingle.encode() for shingle in shingles(pair_text(pair))])
        signature = self._minhash.hashvalues
        self._signatures += signature.astype(np.uint8).tobytes()
        for start in range(0, self._bands * self._rows, self._rows):
            self._band_hashes.append(hash_64(signature[start : start + self._rows].tobytes().hex()))

    def _groups_of(self, bands: Hashes, signatures: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """For each text the number of its group, given a row of band hashes and one of signature bytes each."""
        joined = [np.empty((2, 0), np.int64)]
        for i in range(self._bands):
            # Of texts that agree in this band, those that agree in another one, too, stand side by side.
            order = np.lexsort((bands[:, i - 1], bands[:, i]))
            ordered = bands[order, i]
            same = np.flatnonzero(ordered[1:] == ordered[:-1])
            for start in range(0, len(same), _EDGES_AT_ONCE):
                some = same[start : start + _EDGES_AT_ONCE]
                ends = np.stack([order[some], order[some + 1]])
                alike = (signatures[ends[0]] == signatures[ends[1]]).mean(axis=1) >= self._similarity
                joined.append(ends[:, alike])
        first, second = np.concatenate(joined, axis=1)
        edges = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(bands), len(bands)))
        return connected_components(edges, directed=False)[1]
