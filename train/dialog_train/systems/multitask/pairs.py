"""Pairs and triplets of texts: token ids, computed once, read at random from memory-mapped Arrow files.

OUT/config.json       source of the texts, the tokenizer, number of wrong answers per row
OUT/rows/PART.arrow   texts: token ids of the query, of its target, and of the wrong answers, in this order;
                      the number of truncated texts, and of wrong answers of another question type
OUT/summary.json      rows of each part, and the sums of these counts; written last
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor

from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.plural import count_of
from dialog_gen.dataset.writer import DatasetWriter
from dialog_train.data.checked_rows import rows_writer
from dialog_train.data.columns import Elements, Lists, expand
from dialog_train.data.derived import CONFIG_FILE, open_derived, put, read_json, remove_others
from dialog_train.data.row_files import are_there, id_lists, rows_made_from
from dialog_train.data.row_table import RowTable
from dialog_train.data.token_batches import Spans, TokenBatches, TokenIds, keys_of
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

    queries: Texts
    """N texts, padded to the longest of the batch."""
    targets: Texts
    """N texts, padded to the longest of the batch."""
    negatives: Texts
    """N * K texts, row by row."""
    text_ids: Tensor
    """(N, 2 + K) int64: hashes of query, target and wrong answers. Equal texts have equal hashes."""

    def to(self, device: torch.device) -> "TextBatch":
        """A copy with its tensors on `device`."""
        return to_device(self, device)

    @property
    def duplicate_targets(self) -> Tensor:
        """Share (0 to 1) of targets that another pair of the batch also has: false negatives."""
        return share_of_repeated(self.text_ids[:, 1:2])


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
            made_from = [part.fingerprint for part in parts]
            if found.fingerprint == fingerprint and are_there(out / _PART, found.parts, made_from):
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
        "%s: %s with %s each, %d of these from another question type; %s cut",
        out.name,
        count_of(summary.rows, "row"),
        count_of(source.negatives, "wrong answer"),
        summary.substitutes,
        count_of(summary.truncated, "text"),
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
        self._whole = TokenBatches(config["tokenizer"])
        self._rows = RowTable(out / _PART, self.summary.parts)
        self._ids = TokenIds(self._rows.memory.view(torch.int32))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int] | npt.NDArray[Any], *, full_length: bool = False) -> TextBatch:
        """The given rows. `full_length` pads to the context length, for text towers that see the padding."""
        of = self._rows.at(rows)
        texts: Any = self._rows.columns["texts"].elements(of)
        start = expand(texts.start, texts.end - texts.start)
        ids: Lists = self._rows.columns["texts"].inner
        found = ids.elements(Elements(np.repeat(of.piece, self._texts), start, start + 1))
        place, length = (n.reshape(-1, self._texts) for n in (ids.values.places(found), found.end - found.start))

        def chosen(of: slice) -> Texts:
            spans = Spans(place[:, of].reshape(-1), length[:, of].reshape(-1))
            return self._tokens.texts(self._ids, spans, full_length=full_length)

        whole = self._whole.texts(self._ids, Spans(place.reshape(-1), length.reshape(-1)), full_length=False)
        return TextBatch(
            queries=chosen(slice(0, 1)),
            targets=chosen(slice(1, 2)),
            negatives=chosen(slice(2, None)),
            text_ids=torch.from_numpy(keys_of(whole).reshape(-1, self._texts)),
        )


def _build_part(part: PairPart, encoder: TextEncoder, texts: int, store: DatasetWriter, out: Path) -> Counter[str]:
    """Writes a part unless it exists already, and returns its counts."""
    name = f"{_PART}/{part.name}.arrow"
    if (found := _count(out / name, part.fingerprint)) is not None:
        return found
    kinds = {"texts": pa.list_(pa.list_(pa.int32()), texts), "truncated": pa.int32(), "substitutes": pa.int32()}
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
    file = store.tmp / f"{part.name}.arrow"
    with rows_writer(file, schema, part.fingerprint) as writer:
        for pairs in part.read():
            texts_of_all = [text for pair in pairs for text in (pair.query, pair.target, *pair.negatives)]
            ids, ends, cut = encoder.flat(texts_of_all)
            columns = [
                pa.FixedSizeListArray.from_arrays(id_lists(ids, ends), texts),
                pa.array(cut.astype(np.int32).reshape(-1, texts).sum(1), pa.int32()),
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
