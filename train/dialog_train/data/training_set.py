"""The training set: image vectors and token ids, computed once, read at random from memory-mapped Arrow files.

    OUT/config.json       dialogues, model and weights, tokenizer, the dialogues' format
    OUT/rows/SHARD.arrow  image_id, vector, caption (ids), dialogues (ids of each QA pair), and which of them were
                          truncated
    OUT/summary.json      rows of each shard, what was left out and why, what was truncated; written last

One row per image. An image that the dataset contains several times has one row.
"""

import functools
import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.mapping import Advance, Map, map_here
from dialog_gen.core.plural import count_of
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import STATEMENTS, kept_pairs
from dialog_gen.executors.processes import ProcessMap, processes_for
from dialog_gen.gates.summary import without_gates
from dialog_train.config import Residency
from dialog_train.data.checked_rows import rows_writer
from dialog_train.data.derived import (
    CONFIG_FILE,
    Source,
    identity_of,
    identity_of_dataset,
    open_derived,
    open_shard,
    put,
    read_json,
    refuse_other,
    remove_others,
    sources_of,
)
from dialog_train.data.pair_texts import OneText, PairTexts
from dialog_train.data.row_files import RowFiles, are_there, count_rows, rows_schema, text_columns
from dialog_train.data.stores import MappedStore, Store, captions_of, dialogues_of, open_store, views_of
from dialog_train.data.token_batches import LazyStrings, TokenBatches
from dialog_train.data.vectors import VectorStore
from dialog_train.system import Share, pinned, share_of_repeated, to_device

DialogueFormat = Literal["question_answer", "labelled", "answer"]
DIALOGUE_FORMATS: dict[DialogueFormat, str] = {
    "question_answer": "{user} {assistant}",
    "labelled": "Question: {user} Answer: {assistant}",
    "answer": "{assistant}",
}
"""How a question and its answer become one text. Evaluation uses the same format as training."""

_KIND = "training set"
_PART = "rows"
_SUMMARY_FILE = "summary.json"
_FILES = "made_from"
"""Key of the fingerprints of the shards' files, in order."""
_ROWS_PER_BATCH = 2048
_ROWS_FOR_PROCESSES = 100_000
_COLUMNS = ["image_id", "image_sha256", "caption", "texts"]
_PAIRS = pa.list_(pa.struct({"user": pa.string(), "assistant": pa.string(), "statement": pa.string()}))
# Reasons why a row is left out; index 0 means that the row is used.
_REASONS = ("", "without_caption", "without_dialogue", "without_vector", "duplicate_image")
_DUPLICATE = _REASONS.index("duplicate_image")

# pyarrow.compute creates its functions at import time, so the type checker does not know them.
_compute: Any = pyarrow.compute
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetSummary:
    """What a training set contains and what it leaves out."""

    rows: int
    pairs: int
    dropped: dict[str, int]
    """Reason -> number of dialogues left out."""
    truncated: dict[str, int]
    """Number of texts longer than the model's context: "captions" (of `rows`), "dialogues" (of `pairs`), and
    "concatenated": images (of `rows`) whose dialogues are too long when joined."""
    shards: list[tuple[str, int]] = field(repr=False)
    """Name and rows of each shard with rows, in order."""

    def truncation_rates(self) -> dict[str, float]:
        """The fraction of texts that were truncated, for each kind of text."""
        of = {"captions": self.rows, "dialogues": self.pairs, "concatenated": self.rows}
        return {name: self.truncated[name] / count for name, count in of.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """N images, each with a caption and a dialogue."""

    image_ids: Sequence[str]
    image_vectors: Tensor
    """(N, D) float32, unit-norm."""
    captions: Texts
    """N texts, padded to the longest of the batch."""
    dialogues: Texts
    """N texts, padded to the longest of the batch."""

    def to(self, device: torch.device) -> "Batch":
        """A copy with its tensors on `device`."""
        return to_device(self, device)

    def statistics(self) -> dict[str, float | Tensor]:
        """The values that are logged for each batch."""
        return {"duplicate_captions": self.duplicate_captions}

    @property
    def duplicate_captions(self) -> Tensor:
        """Share (0 to 1) of captions that another image of the batch also has: false negatives."""
        return share_of_repeated(self.captions.tokens)


def build_training_set(
    dataset: DatasetFolder,
    vectors: VectorStore,
    clip: Clip,
    out: Path,
    *,
    dialogue_format: DialogueFormat = "question_answer",
    pair_texts: PairTexts | None = None,
    kept_only: bool = False,
    on_shard: Callable[[int], None] = lambda rows: None,
) -> TrainingSetSummary:
    """Builds the training set, or what is missing of it.

    `pair_texts` makes several texts of each pair; None makes the one of `dialogue_format`.

    `kept_only` leaves out the pairs that a quality gate marked, and images that have no pair left. `on_shard` is called
    with the number of dialogues read. Memory use grows by 9 bytes per image.

    Raises UsageError for vectors of another model or of an older dataset; for a dataset without the columns, without a
    usable row or, with `kept_only`, without gates; and for an `out` that was made from something else. Raises
    DialogGenError if `out` cannot be written.
    """
    if dialogue_format not in DIALOGUE_FORMATS:
        hint = did_you_mean(dialogue_format, DIALOGUE_FORMATS)
        raise UsageError(f"unknown dialogue format {dialogue_format!r}: {hint}")
    pair_texts = pair_texts or OneText(dialogue_format, DIALOGUE_FORMATS[dialogue_format])
    vectors.check(clip)
    encoder = TextEncoder(clip.tokenizer)
    config = {
        "kind": _KIND,
        **identity_of(clip),
        **identity_of_dataset(dataset),
        "width": vectors.width,
        "crops": vectors.crops,
        **pair_texts.config,
        "kept_only": kept_only,
        "tokenizer": encoder.config,
    }
    sources = list(sources_of(dataset))
    made_from = {source.shard: source.sha256 for source in sources}
    fingerprint = sha256_json(made_from | ({"": pair_texts.fingerprint} if pair_texts.fingerprint else {}))
    with open_derived(out, config, _PART) as store:
        if (out / _SUMMARY_FILE).exists():
            found = read_json(out / _SUMMARY_FILE, _KIND)
            files = found.pop(_FILES, ())
            if found.pop("fingerprint") == fingerprint and are_there(out / _PART, found["shards"], files):
                on_shard(sum(source.rows for source in sources))
                return TrainingSetSummary(**found)
            store.remove(_SUMMARY_FILE)
        rows = _Rows(dataset, kept_only, pair_texts.uses_statements and STATEMENTS in dataset.config())
        verdicts = _verdicts(rows, vectors, sources)
        builder = _Builder(
            tmp=store.tmp,
            dialogues=rows,
            vectors=vectors,
            encoder=encoder,
            pair_texts=pair_texts,
        )
        parts = [
            _Part(source=source, verdict=verdict, fingerprint=_fingerprint(source, verdict, pair_texts))
            for source, verdict in zip(sources, verdicts, strict=True)
            if not verdict.all()
        ]
        todo = [part for part in parts if count_rows(out / _name(part), part.fingerprint) is None]
        on_shard(sum(source.rows for source in sources) - sum(part.source.rows for part in todo))
        for part, file in _map_for(todo)(builder, todo):
            put(store, _name(part), file)
            on_shard(part.source.rows)
        shards, counts = list[tuple[str, int]](), Counter[str]()
        for part in parts:
            if (found := count_rows(out / _name(part), part.fingerprint)) is None:
                raise OSError(f"{_name(part)} cannot be read back")
            counts.update(found)
            shards.append((part.source.shard, found["rows"]))
        remove_others(store, _PART, {f"{shard}.arrow" for shard, _ in shards})
        summary = TrainingSetSummary(
            rows=counts["rows"],
            pairs=counts["pairs"],
            dropped=_dropped(verdicts),
            truncated={name: counts[name] for name in ("captions", "dialogues", "concatenated")},
            shards=shards,
        )
        files = [part.fingerprint for part in parts]
        store.put_json(_SUMMARY_FILE, {"fingerprint": fingerprint, _FILES: files, **asdict(summary)})
    rates = ", ".join(f"{rate:.2%} of {name}" for name, rate in summary.truncation_rates().items())
    left_out = ", ".join(f"{count} {reason}" for reason, count in summary.dropped.items()) or "none"
    _log.info(
        "training set: %s, %s; left out: %s; cut: %s",
        count_of(summary.rows, "image"),
        count_of(summary.pairs, "question-answer pair"),
        left_out,
        rates,
    )
    return summary


class TrainingSet:
    """Random access to the rows of a training set. Raises UsageError if there is no finished training set."""

    def __init__(self, out: Path, context_length: int | None = None) -> None:
        """`context_length`: truncates texts to fewer tokens than are stored."""
        self.out = out
        found = read_json(out / _SUMMARY_FILE, _KIND)
        found.pop("fingerprint")
        found.pop(_FILES, None)
        self.summary = TrainingSetSummary(**found)
        self.config = read_json(out / CONFIG_FILE, _KIND)
        self._tokens = TokenBatches(self.config["tokenizer"], context_length)
        self.context_length = self._tokens.context_length
        shape = 1 + self.config["crops"], self.config["width"]
        per_pair = self.config.get("per_pair", 1)
        self._rows = RowFiles(out / _PART, self.summary.shards, "vector", shape, per_pair)
        self._store: Store = MappedStore(self._rows)
        self._pins = False

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, device: torch.device, residency: Residency) -> None:
        """Chooses where vectors and token ids are read from; see `data.resident` of a recipe.

        Raises UsageError for a damaged row.
        """
        self._store = open_store(self._rows, device, residency)
        self._pins = device.type == "cuda" and isinstance(self._store, MappedStore)

    def check(self, clip: Clip) -> None:
        """Raises UsageError if the rows were made with another model."""
        refuse_other(self.out, self.config, identity_of(clip))

    def batch(
        self, rows: Sequence[int] | npt.NDArray[Any], epoch: int, *, concatenate: bool, full_length: bool = False
    ) -> Batch:
        """The given rows as a batch, with one QA pair each, or all pairs joined if `concatenate` is set.

        `epoch` selects the pair: an image with P pairs uses each of them once in P epochs; the image's id determines
        the first one. If crops are stored, image and epoch determine whether the vector is that of the whole image or
        of a crop. `full_length` pads to the model's context length, for text towers that see the padding.
        """
        of = self._rows.at(rows)
        source = self._rows, self._store, self._tokens, of
        batch = Batch(
            image_ids=LazyStrings(len(of.piece), lambda: self._rows.image_ids(of)),
            # Rounding to float16 left the norms slightly off one.
            image_vectors=normalize(views_of(self._rows, self._store, of, epoch).float(), dim=-1),
            captions=captions_of(*source, full_length=full_length),
            dialogues=dialogues_of(*source, epoch, concatenate=concatenate, full_length=full_length),
        )
        return pinned(batch) if self._pins else batch


def epoch_batches(rows: int, batch_size: int, seed: int, epoch: int) -> npt.NDArray[np.integer[Any]]:
    """Row numbers (steps, batch_size) of an epoch: a permutation that depends only on seed and epoch.

    The rows that do not fill a batch are left out; each epoch leaves out other rows. Raises UsageError if the rows do
    not fill a single batch.
    """
    steps = rows // batch_size
    if not steps:
        raise UsageError(
            f"a batch of {batch_size} needs as many images, the training set has {rows}: lower batch_size."
        )
    # The order of `permutation(rows)`, in half of the memory.
    order = np.arange(rows, dtype=np.int32 if rows < 2**31 else np.int64)
    np.random.default_rng([seed, epoch]).shuffle(order)
    return order[: steps * batch_size].reshape(steps, batch_size)


def columns_of(rank: int, world_size: int, batch_size: int) -> slice:
    """The columns of `epoch_batches` that one process takes. All processes together take all columns, in order of rank.

    Raises UsageError if the batch size is not a multiple of the world size.
    """
    if batch_size % world_size:
        raise UsageError(f"batch_size {batch_size} is for all processes together: it must divide by {world_size}.")
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


class EpochOrder:
    """Maps steps to rows, in a new order every epoch."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        """Raises UsageError for a batch that is larger than the data."""
        self._batch_size = batch_size
        self._of = functools.lru_cache(maxsize=2)(lambda epoch: epoch_batches(rows, batch_size, seed, epoch))
        self.steps_per_epoch = len(self._of(0))

    def rows(self, step: int, share: Share) -> tuple[int, npt.NDArray[np.integer[Any]]]:
        """The epoch of step `step` (counted from 0) and the rows of a process's share of its batch.

        Raises UsageError if the batch size is not a multiple of the number of processes.
        """
        epoch, number = divmod(step, self.steps_per_epoch)
        return epoch, self._of(epoch)[number, columns_of(share.rank, share.world_size, self._batch_size)]


def _name(part: "_Part") -> str:
    return f"{_PART}/{part.source.shard}.arrow"


def _fingerprint(source: Source, verdict: npt.NDArray[np.int8], pair_texts: PairTexts) -> str:
    return hashlib.sha256(source.sha256.encode() + verdict.tobytes() + pair_texts.fingerprint.encode()).hexdigest()


def _map_for(parts: "list[_Part]") -> Map:
    """Several processes if the start of them, which takes seconds, is soon made up for."""
    count = processes_for(len(parts))
    if count == 1 or sum(part.source.rows for part in parts) < _ROWS_FOR_PROCESSES:
        return map_here
    return ProcessMap([{}] * count)


def _verdicts(dialogues: "_Rows", vectors: VectorStore, sources: list[Source]) -> list[npt.NDArray[np.int8]]:
    """For each shard an array with one number per row: an index of `_REASONS`, or 0 for a row that is used."""
    verdicts: list[npt.NDArray[np.int8]] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    for source in sources:
        if vectors.source(source.shard) != source.sha256:
            raise UsageError(
                f"{vectors.out} lacks vectors of shard {source.shard}, or they are of an older version: "
                "run `dialog-train embed` with the same --out again."
            )
        table = dialogues.read(source)
        verdict = np.zeros(len(table), np.int8)
        there = _compute.is_in(table["image_id"], value_set=vectors.read(source.shard)["image_id"].combine_chunks())
        verdict[~_bools(there)] = _REASONS.index("without_vector")
        verdict[~_bools(_compute.greater(_compute.list_value_length(table["texts"]), 0))] = _REASONS.index(
            "without_dialogue"
        )
        captioned = _compute.greater(_compute.utf8_length(_compute.utf8_trim_whitespace(table["caption"])), 0)
        verdict[~_bools(captioned)] = _REASONS.index("without_caption")
        verdicts.append(verdict)
        # With 64 bits, the chance of a collision among three million images is about one in four million.
        heads = [int(sha256[:16], 16) for sha256 in table["image_sha256"].to_pylist()]
        hashes.append(np.array(heads, np.uint64))
    everything, usable = np.concatenate(hashes), np.flatnonzero(np.concatenate(verdicts) == 0)
    if not len(usable):
        raise UsageError(f"{dialogues.dataset.location} has no row to train on: {_dropped(verdicts)}.")
    del hashes
    _, first = np.unique(everything[usable], return_index=True)
    duplicates = np.delete(usable, first)
    starts = np.cumsum([0, *map(len, verdicts)])
    which = np.searchsorted(starts, duplicates, side="right") - 1
    for number in np.unique(which):
        verdicts[number][duplicates[which == number] - starts[number]] = _DUPLICATE
    return verdicts


def _dropped(verdicts: list[npt.NDArray[np.int8]]) -> dict[str, int]:
    counts = sum((np.bincount(verdict, minlength=len(_REASONS)) for verdict in verdicts), np.zeros(len(_REASONS), int))
    return {reason: int(count) for reason, count in zip(_REASONS[1:], counts[1:], strict=True) if count}


def _bools(mask: Any) -> npt.NDArray[np.bool_]:
    return _compute.fill_null(mask, False).to_numpy(zero_copy_only=False)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Reads the dialogues of a dataset, with `kept_only` without the pairs that a quality gate marked.

    With `statements`, pairs that have a sentence of the generator have it under "statement".
    """

    dataset: DatasetFolder
    kept_only: bool
    statements: bool

    def read(self, source: Source) -> pa.Table:
        more = [name for name, wanted in (("gates", self.kept_only), (STATEMENTS, self.statements)) if wanted]
        columns = [*_COLUMNS, *more]
        with open_shard(self.dataset, source, columns, "a dataset that `dialog-gen run` wrote has it") as file:
            table = file.read(columns)
        if not more:
            return table
        if self.kept_only and table["gates"].null_count:
            raise without_gates(self.dataset.location, source.shard, "data.kept_only")
        rows = table.select(["texts", *more]).to_pylist()
        if self.statements:
            for row in rows:
                for pair, sentence in zip(row["texts"], row[STATEMENTS] or (), strict=False):
                    pair["statement"] = sentence
        texts = [kept_pairs(row) if self.kept_only else row["texts"] for row in rows]
        place = table.schema.names.index("texts")
        return table.drop_columns(more).set_column(place, "texts", pa.array(texts, _PAIRS))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A shard to be built."""

    source: Source
    verdict: npt.NDArray[np.int8]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Builds the Arrow files of shards as temporary files."""

    tmp: Path
    dialogues: _Rows
    vectors: VectorStore
    encoder: TextEncoder
    pair_texts: PairTexts

    def __call__(self, part: _Part, advance: Advance) -> Path:
        """Writes the rows of a shard; the file is to be moved to its place."""
        table = self.dialogues.read(part.source).filter(pa.array(part.verdict == 0))
        stored = self.vectors.read(part.source.shard).combine_chunks()
        places = _compute.index_in(table["image_id"], value_set=stored["image_id"].combine_chunks())
        table = table.append_column("vector", stored["vector"].take(places))
        numbers = (1 + self.vectors.crops) * self.vectors.width
        fields = [pa.field("vector", pa.list_(pa.float16(), numbers), nullable=False)]
        if self.pair_texts.shares([]) is not None:
            fields.append(pa.field("shares", pa.list_(pa.float32()), nullable=False))
        schema = rows_schema(*fields)
        # Another process may still write the same shard to a file of another name, if it was given up.
        file = Path(tempfile.mkdtemp(dir=self.tmp)) / f"{part.source.shard}.arrow"
        with rows_writer(file, schema, part.fingerprint) as writer:
            for start in range(0, len(table), _ROWS_PER_BATCH):
                writer.write_batch(self._encode(table.slice(start, _ROWS_PER_BATCH).combine_chunks(), schema))
        return file

    def _encode(self, table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
        pairs: list[list[dict[str, str]]] = table["texts"].to_pylist()
        ids: list[str] = table["image_id"].to_pylist()
        dialogues = list(map(self.pair_texts, ids, pairs))
        captions = table["caption"].to_pylist()
        texts = text_columns(self.encoder, captions, dialogues, per_pair=self.pair_texts.per_pair)
        shares = [self.pair_texts.shares(row) for row in pairs] if "shares" in schema.names else None
        numbers = [] if shares is None else [pa.array(shares, pa.list_(pa.float32()))]
        columns = [table["image_id"].combine_chunks(), table["vector"].combine_chunks(), *numbers, *texts]
        return pa.record_batch(columns, schema=schema)
