"""Pairs and triplets of texts: token ids, computed once, read at random from memory-mapped Arrow files.

OUT/config.json       source of the texts, the tokenizer, number of wrong answers per row
OUT/rows/PART.arrow   texts: token ids of the query, of its target, and of the wrong answers, in this order;
                      the number of truncated texts, and of wrong answers of another question type
OUT/summary.json      rows of each part, and the sums of these counts; written last
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor

from dialog_gen.clip.text.tokens import Ids, TextEncoder
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.dataset.writer import DatasetWriter
from dialog_train.data.derived import CONFIG_FILE, open_derived, put, read_json, remove_others
from dialog_train.data.row_files import MappedRows, TokenBatches, id_lists, rows_made_from
from dialog_train.system import share_of_repeated, to_device

_KIND = "text pairs"
_PART = "rows"
_SUMMARY_FILE = "summary.json"

# pyarrow.compute creates its functions at import time, so the type checker does not know them.
_compute: Any = pyarrow.compute
_log = logging.getLogger(__name__)


class TextPair(NamedTuple):
    """A query with its matching text and, in a triplet, texts that do not match."""

    query: str
    target: str
    negatives: tuple[str, ...] = ()
    substitutes: int = 0
    """Number of negatives that answer questions of another type, because there were too few of the same type."""


@dataclass(frozen=True, slots=True)
class PairPart:
    """Pairs that go into one file."""

    name: str
    fingerprint: str
    """Hash that changes when the content changes."""
    read: Callable[[], Iterator[list[TextPair]]]


class PairSource(Protocol):
    """Where pairs or triplets come from."""

    @property
    def negatives(self) -> int:
        """Number of wrong answers per row; 0 for pairs."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """Identifies the source, as JSON values."""
        ...

    def parts(self) -> Iterator[PairPart]:
        """The parts, in order. Raises UsageError if data is missing or damaged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPairsSummary:
    """What a set of text pairs contains."""

    fingerprint: str
    """Fingerprint of the source."""
    rows: int
    truncated: int
    """Number of texts, including wrong answers, that are longer than the context."""
    substitutes: int
    """Number of wrong answers whose question type differs from that of their row's question."""
    parts: list[tuple[str, int]] = field(repr=False)
    """Name and rows of each part with rows, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBatch:
    """A batch of N pairs, or of N triplets with K wrong answers each."""

    query_tokens: Tensor
    """(N, L) int64, padded to the longest of the batch."""
    target_tokens: Tensor
    """(N, L') int64, padded to the longest of the batch."""
    negative_tokens: Tensor
    """(N * K, L'') int64, row by row."""
    text_ids: Tensor
    """(N, 2 + K) int64: hashes of query, target and wrong answers. Equal texts have equal hashes."""

    def to(self, device: torch.device) -> "TextBatch":
        """A copy with its tensors on `device`."""
        return to_device(self, device)

    @property
    def duplicate_targets(self) -> float:
        """Share (0 to 1) of targets that another pair of the batch also has: false negatives."""
        return share_of_repeated(self.text_ids[:, 1])


def build_text_pairs(source: PairSource, encoder: TextEncoder, out: Path) -> TextPairsSummary:
    """Builds the set, or what is missing of it. Memory use depends neither on the source nor on its parts.

    Raises UsageError if the source does, if it has no row, or if `out` was made from something else; DialogGenError if
    `out` cannot be written.
    """
    config = {"kind": _KIND, **source.config, "negatives": source.negatives, "tokenizer": encoder.config}
    with open_derived(out, config, _PART) as store:
        parts = list(source.parts())
        fingerprint = sha256_json({part.name: part.fingerprint for part in parts})
        if (out / _SUMMARY_FILE).exists():
            found = TextPairsSummary(**read_json(out / _SUMMARY_FILE, _KIND))
            if found.fingerprint == fingerprint:
                return found
            store.remove(_SUMMARY_FILE)
        counts, rows = Counter[str](), list[tuple[str, int]]()
        for part in parts:
            found = _build_part(part, encoder, 2 + source.negatives, store, out)
            counts.update(found)
            rows.append((part.name, found["rows"]))
        remove_others(store, _PART, {f"{part.name}.arrow" for part in parts})
        if not counts["rows"]:
            raise UsageError("there is no text pair to train on: neither a caption with a dialogue nor a question.")
        summary = TextPairsSummary(
            fingerprint=fingerprint,
            rows=counts["rows"],
            truncated=counts["truncated"],
            substitutes=counts["substitutes"],
            parts=rows,
        )
        store.put_json(_SUMMARY_FILE, asdict(summary))
    _log.info(
        "%s: %d rows with %d wrong answers each, %d of these from another question type; %d texts cut",
        out.name,
        summary.rows,
        source.negatives,
        summary.substitutes,
        summary.truncated,
    )
    return summary


class TextPairs:
    """Random access to the rows of a set of text pairs. Raises UsageError if there is no finished set."""

    def __init__(self, out: Path, context_length: int | None = None) -> None:
        """`context_length`: truncates texts to fewer tokens than are stored."""
        self.summary = TextPairsSummary(**read_json(out / _SUMMARY_FILE, _KIND))
        self.fingerprint = self.summary.fingerprint
        config = read_json(out / CONFIG_FILE, _KIND)
        self._texts = 2 + config["negatives"]
        self._tokens = TokenBatches(config["tokenizer"], context_length)
        self._rows = MappedRows(out / _PART, self.summary.parts, lambda batch: _Piece(batch, self._texts))

    def __len__(self) -> int:
        return self.summary.rows

    def batch(self, rows: Sequence[int] | npt.NDArray[Any], *, full_length: bool = False) -> TextBatch:
        """The given rows. `full_length` pads to the context length, for text towers that see the padding."""
        texts = [piece.texts(row) for piece, row in self._rows.places(rows)]
        hashes = [_hash(ids) for row in texts for ids in row]

        def tokens(of: slice) -> Tensor:
            return self._tokens.tensor([ids for row in texts for ids in row[of]], full_length=full_length)

        return TextBatch(
            query_tokens=tokens(slice(0, 1)),
            target_tokens=tokens(slice(1, 2)),
            negative_tokens=tokens(slice(2, None)),
            text_ids=torch.from_numpy(np.array(hashes, np.int64).reshape(-1, self._texts)),
        )


class _Piece:
    """A view of a record batch of a file; it copies nothing."""

    def __init__(self, batch: pa.RecordBatch, texts: int) -> None:
        column: Any = batch.column("texts")
        self._count, self._texts = len(batch), texts
        self._ends: npt.NDArray[np.int32] = column.values.offsets.to_numpy()
        self._ids: Ids = column.values.values.to_numpy()

    def __len__(self) -> int:
        return self._count

    def texts(self, row: int) -> list[Ids]:
        """Token ids of the row's query, target and wrong answers."""
        ends = self._ends[row * self._texts : (row + 1) * self._texts + 1]
        return [self._ids[start:end] for start, end in pairwise(ends.tolist())]


def _build_part(part: PairPart, encoder: TextEncoder, texts: int, store: DatasetWriter, out: Path) -> Counter[str]:
    """Writes a part unless it exists already, and returns its counts."""
    name = f"{_PART}/{part.name}.arrow"
    if (found := _count(out / name, part.fingerprint)) is not None:
        return found
    kinds = {"texts": pa.list_(pa.list_(pa.int32()), texts), "truncated": pa.int32(), "substitutes": pa.int32()}
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
    file = store.tmp / f"{part.name}.arrow"
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_file(sink, schema.with_metadata({"fingerprint": part.fingerprint})) as writer,
    ):
        for pairs in part.read():
            ids, cut = encoder([text for pair in pairs for text in (pair.query, pair.target, *pair.negatives)])
            columns = [
                pa.FixedSizeListArray.from_arrays(id_lists(ids), texts),
                pa.array(np.array(cut, np.int32).reshape(-1, texts).sum(1), pa.int32()),
                pa.array([pair.substitutes for pair in pairs], pa.int32()),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    put(store, name, file)
    found = _count(out / name, part.fingerprint)
    if found is None:
        raise OSError(f"{name} cannot be read back")
    return found


def _count(file: Path, fingerprint: str) -> Counter[str] | None:
    """The counts of a file; None in the same cases as `rows_made_from`."""
    table = rows_made_from(file, fingerprint)
    if table is None:
        return None
    sums = {name: _compute.sum(table[name]).as_py() or 0 for name in ("truncated", "substitutes")}
    return Counter(rows=len(table), **sums)


def _hash(ids: Ids) -> int:
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), signed=True)
