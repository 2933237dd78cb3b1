"""Where batches read vectors and token ids: in mapped files, or on the device, which holds a copy of the whole set."""

import logging
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dialog_gen.clip.text.texts import Texts
from dialog_train.config import Residency
from dialog_train.data.columns import Elements, Numbers, crc32_after
from dialog_train.data.row_files import RowFiles
from dialog_train.data.token_batches import Spans, TokenBatches, TokenIds

_SHARE = 0.25
"""The set may take this share of the device's free memory; weights, gradients and activations need the rest."""
_log = logging.getLogger(__name__)


class Store(Protocol):
    """The vectors and token ids of the rows of a training set."""

    ids: TokenIds

    def vectors(self, of: Elements, views: Numbers) -> Tensor:
        """The vector of one view of each row: (N, D) float16."""
        ...

    def captions(self, of: Elements, spans: Spans) -> Spans:
        """Where captions are in `ids`, from where they are in the files."""
        ...

    def dialogues(self, piece: Numbers, spans: Spans) -> Spans:
        """The same for texts of dialogues; `piece` is that of each text."""
        ...


class MappedStore:
    """Reads from the files whenever a batch is made."""

    def __init__(self, rows: RowFiles) -> None:
        self._rows = rows
        self.ids = TokenIds(rows.memory.view(torch.int32))

    def vectors(self, of: Elements, views: Numbers) -> Tensor:
        """Implements `Store`."""
        return torch.from_numpy(self._rows.views(of, views))

    def captions(self, of: Elements, spans: Spans) -> Spans:
        """Implements `Store`."""
        return spans

    def dialogues(self, piece: Numbers, spans: Spans) -> Spans:
        """Implements `Store`."""
        return spans


class ResidentStore:
    """Holds a copy of all vectors and token ids on a device; every row is read and checked once, in the beginning."""

    def __init__(self, rows: RowFiles, device: torch.device) -> None:
        """Raises UsageError for a damaged row."""
        self._starts = rows.starts
        blocks = [rows.id_blocks(name) for name in ("caption", "dialogues")]
        lengths, places = np.stack([b.length for b in blocks]), np.stack([b.place for b in blocks])
        # The ids of all captions of the first piece, then those of all its dialogues, then those of the next piece.
        starts = (np.cumsum(lengths.T) - lengths.T.reshape(-1)).reshape(-1, 2).T
        self._caption_shift, self._dialogue_shift = starts - places
        ids = torch.empty(int(lengths.sum()), dtype=torch.int32, device=device)
        self._vectors = torch.empty((len(rows), *rows.shape), dtype=torch.float16, device=device)
        mapped = MappedStore(rows)
        for piece, (first, end) in enumerate(pairwise(rows.starts.tolist())):
            of = rows.at(np.arange(first, end))
            self._vectors[first:end] = torch.from_numpy(rows.images(of)).to(device)
            for start, place, length in zip(starts[:, piece], places[:, piece], lengths[:, piece], strict=True):
                ids[start : start + length] = mapped.ids.ids[place : place + length].to(device)
        self.ids = TokenIds(ids)

    def vectors(self, of: Elements, views: Numbers) -> Tensor:
        """Implements `Store`."""
        rows = self._starts[of.piece] + of.start
        return self._vectors[self.ids.here(rows), self.ids.here(views)]

    def captions(self, of: Elements, spans: Spans) -> Spans:
        """Implements `Store`."""
        return spans._replace(place=spans.place + self._caption_shift[of.piece])

    def dialogues(self, piece: Numbers, spans: Spans) -> Spans:
        """Implements `Store`."""
        return spans._replace(place=spans.place + self._dialogue_shift[piece])


def captions_of(rows: RowFiles, store: Store, tokens: TokenBatches, of: Elements, *, full_length: bool) -> Texts:
    """The captions of the rows."""
    return tokens.texts(store.ids, store.captions(of, rows.captions(of)), full_length=full_length)


def dialogues_of(
    rows: RowFiles,
    store: Store,
    tokens: TokenBatches,
    of: Elements,
    epoch: int,
    *,
    concatenate: bool,
    full_length: bool,
) -> Texts:
    """One QA pair per image, chosen by `epoch`, or all pairs joined if `concatenate` is set.

    An image with P pairs uses each of them once in P epochs; the image's id determines the first one.
    """
    if concatenate:
        pairs, counts = rows.all_pairs(of)
        pairs = store.dialogues(np.repeat(of.piece, counts), pairs)
        return tokens.joined(store.ids, pairs, counts, full_length=full_length)
    numbers = (epoch + rows.image_id_crcs(of).astype(np.int64)) % rows.pair_counts(of)
    return tokens.texts(store.ids, store.dialogues(of.piece, rows.pairs(of, numbers)), full_length=full_length)


def views_of(rows: RowFiles, store: Store, of: Elements, epoch: int) -> Tensor:
    """The vector of the whole image or of a crop, which image and epoch determine: (N, D) float16."""
    crcs = crc32_after(rows.image_id_crcs(of), f"/{epoch}")
    return store.vectors(of, (crcs % np.uint32(rows.shape[0])).astype(np.int64))


def open_store(rows: RowFiles, device: torch.device, residency: Residency) -> Store:
    """Copies the set to the device if `residency` is "always", or "auto" and it fits; a CPU has it in files already.

    Raises UsageError for a damaged row.
    """
    needed = resident_bytes(rows)
    if residency == "auto":
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        if needed > _SHARE * free:
            if free:
                said = "vectors and token ids stay in files: %.1f GB, and the GPU has %.1f GB free, a quarter for them"
                _log.info(said, needed / 1e9, free / 1e9)
            return MappedStore(rows)
    elif residency == "never":
        return MappedStore(rows)
    _log.info("vectors and token ids (%.1f GB) are copied to %s", needed / 1e9, device)
    return ResidentStore(rows, device)


def resident_bytes(rows: RowFiles) -> int:
    """The memory that a copy of the vectors and token ids of all rows takes, in bytes."""
    ids = sum(int(rows.id_blocks(name).length.sum()) for name in ("caption", "dialogues"))
    return 4 * ids + 2 * len(rows) * int(np.prod(rows.shape))
