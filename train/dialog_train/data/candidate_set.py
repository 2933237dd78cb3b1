"""A training set in which each QA pair has several texts: the right one, foils, and more; and its batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dialog_gen.clip.text.texts import Texts
from dialog_gen.core.hashing import sha256_json
from dialog_train.data.columns import Elements, Numbers, expand
from dialog_train.data.stores import captions_of, views_of
from dialog_train.data.token_batches import LazyStrings, Spans, keys_of
from dialog_train.data.training_set import EpochOrder, TrainingSet
from dialog_train.system import Share, pinned, share_of_repeated, to_device

_LEAST_SHARE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateBatch:
    """N images, each with a caption and the G texts of one of its QA pairs."""

    image_ids: Sequence[str]
    image_vectors: Tensor
    """(N, D) float32, unit-norm."""
    captions: Texts
    """N texts, padded to the longest of the batch."""
    candidates: Texts
    """The texts of all images; several images may share one."""
    which: Tensor
    """(N, G) int64: the numbers of each image's candidates: of the right text, of the foils, of the denials of the
    right text and of the first foil, then of the conjunctions, the right one first."""
    there: Tensor
    """(N, G) bool: which of the candidates exist."""
    recombined: Texts
    """N texts: the beginning of a candidate and the end of the caption, or the reverse, cut anywhere; none if they are
    not asked for."""

    def to(self, device: torch.device) -> "CandidateBatch":
        """A copy with its tensors on `device`."""
        return to_device(self, device)

    def statistics(self) -> dict[str, float | Tensor]:
        """The values that are logged for each batch."""
        return {"duplicate_captions": share_of_repeated(self.captions.tokens)}


class CandidateSet(TrainingSet):
    """Random access to the rows of a training set that was built with `pair_texts.Candidates`."""

    def __init__(self, out: Path, context_length: int | None = None) -> None:
        """Raises UsageError if there is no finished training set."""
        super().__init__(out, context_length)
        tokenizer = self.config["tokenizer"]
        self._frame = len(tokenizer["start"]) + len(tokenizer["end"])

    def candidate_batch(
        self,
        rows: Sequence[int] | npt.NDArray[Any],
        epoch: int,
        *,
        balance: float = 0.0,
        recombined: bool = False,
        distinct: bool = False,
        full_length: bool = False,
    ) -> CandidateBatch:
        """The given rows as a batch.

        `epoch` selects the pair. With a `balance` of 0, an image with P pairs uses each of them once in P epochs. With
        more, a pair is drawn, by image and epoch, with a probability that goes with share^-balance, where share is that
        of its type of question among all pairs: with 1, all types are drawn equally often wherever an image has them.
        `distinct` gives equal candidates once, if their token ids are not on a GPU.
        """
        of = self._rows.at(rows)
        spans = self._rows.candidates(of, self._chosen(of, epoch, balance))
        shape = len(of.piece), self._rows.per_pair
        there = (spans.length > self._frame).reshape(shape)
        spans = self._store.dialogues(np.repeat(of.piece, self._rows.per_pair), spans)
        candidates = self._tokens.texts(self._store.ids, spans, full_length=full_length)
        which = np.arange(len(candidates))
        if distinct and candidates.tokens.device.type == "cpu":
            _, first, which = np.unique(keys_of(candidates), return_index=True, return_inverse=True)
            rows_of = torch.from_numpy(first)
            candidates = Texts(candidates.tokens[rows_of], candidates.lengths[first], candidates.may_hold_padding)
        source = self._rows, self._store, self._tokens, of
        batch = CandidateBatch(
            image_ids=LazyStrings(len(of.piece), lambda: self._rows.image_ids(of)),
            # Rounding to float16 left the norms slightly off one.
            image_vectors=normalize(views_of(self._rows, self._store, of, epoch).float(), dim=-1),
            captions=captions_of(*source, full_length=full_length),
            candidates=candidates,
            which=self._store.ids.here(which.reshape(shape)),
            there=self._store.ids.here(there),
            recombined=self._recombined(of if recombined else self._rows.at([]), spans, epoch, full_length),
        )
        return pinned(batch) if self._pins else batch

    def _recombined(self, of: Elements, candidates: Spans, epoch: int, full_length: bool) -> Texts:
        count = len(of.piece)
        draws = _draws(self._rows.image_id_crcs(of), epoch, 4)
        captions = self._store.captions(of, self._rows.captions(of))
        one = np.arange(count) * self._rows.per_pair + (draws[0] * self._rows.per_pair).astype(np.int64)
        swapped = draws[1] < 0.5
        texts = [candidates.place[one], captions.place], [candidates.length[one], captions.length]
        places, lengths = (np.where(swapped, pair[::-1], pair) for pair in texts)  # (2, N)
        # Of the first text it takes the beginning, of the second one the end.
        taken = (draws[2:] * (lengths - self._frame + 1)).astype(np.int64)
        places[1] += lengths[1] - self._frame - taken[1]
        spans = Spans(places.T.reshape(-1), (taken + self._frame).T.reshape(-1))
        return self._tokens.joined(self._store.ids, spans, np.full(count, 2), full_length=full_length)

    def _chosen(self, of: Elements, epoch: int, balance: float) -> Numbers:
        """The number of a pair of each image."""
        crcs, counts = self._rows.image_id_crcs(of), self._rows.pair_counts(of)
        if not balance:
            return (epoch + crcs.astype(np.int64)) % counts
        shares: Any = self._rows.columns["shares"]
        pairs = shares.elements(of)
        places = expand(shares.values.places(pairs), counts)
        # A type that only marked pairs have was not counted.
        weights = np.cumsum(np.maximum(shares.values.all[places].astype(np.float64), _LEAST_SHARE) ** -balance)
        ends = np.cumsum(counts)
        before = np.concatenate([[0.0], weights])[ends - counts]
        (draws,) = _draws(crcs, epoch, 1)
        found = np.searchsorted(weights, before + draws * (weights[ends - 1] - before), side="right")
        return np.clip(found - (ends - counts), 0, counts - 1)


class CandidateBatches:
    """`Data` of images with a caption and the candidates of a pair each, in a new order every epoch."""

    def __init__(
        self,
        rows: CandidateSet,
        *,
        batch_size: int,
        seed: int,
        balance: float,
        recombined: bool,
        full_length: bool,
    ) -> None:
        """Raises UsageError for a batch that is larger than the data."""
        self._rows = rows
        self._how: dict[str, Any] = {"balance": balance, "recombined": recombined, "full_length": full_length}
        self._order = EpochOrder(len(rows), batch_size, seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.fingerprint: dict[str, Any] = {"rows": len(rows), "config_sha256": sha256_json(rows.config)}

    def batch(self, step: int, share: Share) -> CandidateBatch:
        """A process's share of the batch of a step, as `Data` describes."""
        epoch, chosen = self._order.rows(step, share)
        # With several processes, each would have another number of texts, and some towers are sharded.
        return self._rows.candidate_batch(chosen, epoch, distinct=share.world_size == 1, **self._how)


def _draws(crcs: npt.NDArray[np.uint32], epoch: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers from 0 up to 1 (count, N) that image and epoch determine (SplitMix64)."""
    steps = np.arange(count, dtype=np.uint64)[:, None] + np.uint64(epoch * count)
    z = (crcs.astype(np.uint64) << np.uint64(32)) + (steps + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 2.0**53
