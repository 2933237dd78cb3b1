"""The texts of a dialogues dataset and their context vectors, computed once, read from memory-mapped files.

    OUT/config.json       dialogues, model and weights
    OUT/texts/SHARD.arrow image_id, caption, questions, answers, and the unit-norm text vectors (float16) of the caption
                          and of all question-answer pairs joined, truncated to the model's context
    OUT/summary.json      rows of each shard; written last

One row per image that has a caption and at least one pair. No image is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.tokens import Ids, TextEncoder, join_ids
from dialog_gen.clip.text.tower import TextTower, encode_ids
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.data.checked_rows import rows_writer
from dialog_train.data.derived import (
    CONFIG_FILE,
    Source,
    identity_of,
    identity_of_dataset,
    open_derived,
    put,
    read_json,
    read_rows,
    remove_others,
    sources_of,
)
from dialog_train.data.row_files import are_there
from dialog_train.data.row_table import RowTable
from dialog_train.data.training_set import DIALOGUE_FORMATS
from dialog_train.systems.close.config import Context
from dialog_train.systems.close.examples import Pair

_KIND = "texts with context vectors"
_PART = "texts"
_SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsSummary:
    """What the texts contain and what they leave out."""

    rows: int
    left_out: int
    """Number of dialogues without a caption or without a pair."""
    shards: list[tuple[str, int]] = field(repr=False)
    """Name and rows of each shard with rows, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow:
    """The texts of an image and their vectors."""

    image_id: str
    caption: str
    pairs: list[Pair]
    vectors: dict[Context, Any]
    """For each kind of context a unit-norm vector (D,) in float16."""


class TextVectors:
    """Computes unit-norm text vectors with a CLIP's frozen text tower. The model is left on `device`."""

    def __init__(self, clip: Clip, device: torch.device | str = "cpu") -> None:
        """Raises UsageError for a text tower of an unknown kind."""
        try:
            self._tower = TextTower(clip.model.to(device)).eval()
        except TypeError as error:
            raise UsageError(f"{clip.name} has no text tower to take contexts from: {error}.") from None
        self.encoder, self._name = TextEncoder(clip.tokenizer), clip.name

    def __call__(self, ids: Sequence[Ids]) -> Tensor:
        """Token ids of N texts -> (N, D) float32 on the CPU. Raises UsageError if a vector is not finite."""
        return encode_ids(self._tower, self.encoder, ids, self._name).cpu()

    def of_dialogues(self, rows: Sequence[Sequence[Pair]]) -> Tensor:
        """Vectors (N, D) of N dialogues; the pairs of each dialogue are joined to one text."""
        form = DIALOGUE_FORMATS["question_answer"]
        texts = [form.format(user=pair.question, assistant=pair.answer) for row in rows for pair in row]
        ids = iter(self.encoder(texts)[0])
        frame = self.encoder.start, self.encoder.end, self.encoder.context_length
        return self([join_ids([next(ids) for _ in row], *frame) for row in rows])


def build_texts(
    dataset: DatasetFolder, clip: Clip, out: Path, *, kept_only: bool = False, device: torch.device | str = "cpu"
) -> TextsSummary:
    """Computes the texts and vectors unless they are up to date.

    `kept_only` leaves out the pairs that a quality gate marked. Raises UsageError for a dataset without the columns,
    without a usable row or, with `kept_only`, without gates, and for an `out` that was made from something else;
    DialogGenError if `out` cannot be written.
    """
    config = {"kind": _KIND, **identity_of(clip), **identity_of_dataset(dataset), "kept_only": kept_only}
    sources = list(sources_of(dataset))
    made_from = {source.shard: source.sha256 for source in sources}
    fingerprint = sha256_json(made_from)
    with open_derived(out, config, _PART) as store:
        if (out / _SUMMARY_FILE).exists():
            found = read_json(out / _SUMMARY_FILE, _KIND)
            shards = found["shards"]
            is_current = found.pop("fingerprint") == fingerprint
            if is_current and are_there(out / _PART, shards, [made_from[shard] for shard, _ in shards]):
                return TextsSummary(**found)
            store.remove(_SUMMARY_FILE)
        text_vectors = TextVectors(clip, device)
        shards = list[tuple[str, int]]()
        for source in sources:
            part, count = store.tmp / f"{source.shard}.arrow", 0
            schema = _schema(int(clip.config["embed_dim"]))
            with rows_writer(part, schema, source.sha256) as writer:
                for rows in _usable(dataset, source, kept_only):
                    writer.write_batch(_encode(rows, text_vectors, schema))
                    count += len(rows)
            if count:
                put(store, f"{_PART}/{source.shard}.arrow", part)
                shards.append((source.shard, count))
        remove_others(store, _PART, {f"{shard}.arrow" for shard, _ in shards})
        rows = sum(count for _, count in shards)
        if not rows:
            raise UsageError(f"{dataset.location} has no row with a caption and a question-answer pair to train on.")
        summary = TextsSummary(rows=rows, left_out=sum(source.rows for source in sources) - rows, shards=shards)
        store.put_json(_SUMMARY_FILE, {"fingerprint": fingerprint, **asdict(summary)})
    return summary


class Texts:
    """Random access to the rows that `build_texts` wrote. Raises UsageError if there are none."""

    def __init__(self, out: Path) -> None:
        found = read_json(out / _SUMMARY_FILE, _KIND)
        found.pop("fingerprint")
        self.summary = TextsSummary(**found)
        self.config = read_json(out / CONFIG_FILE, _KIND)
        self._out = out
        self._rows = RowTable(out / _PART, self.summary.shards)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> TextRow:
        of = self._rows.at([number])
        (questions,), (answers,) = (self._rows.string_lists(name, of) for name in ("questions", "answers"))
        return TextRow(
            image_id=self._rows.strings("image_id", of)[0],
            caption=self._rows.strings("caption", of)[0],
            pairs=list(map(Pair, questions, answers)),
            vectors={
                "caption": self._rows.vectors("caption_vector", of)[0],
                "dialogue": self._rows.vectors("dialogue_vector", of)[0],
            },
        )

    def __iter__(self) -> Iterator[TextRow]:
        return (self[number] for number in range(len(self)))

    def vectors(self, context: Context) -> Iterator[tuple[str, list[str], Tensor]]:
        """Yields for each shard its name, image ids and context vectors (rows, D) in float32, unit-norm."""
        first = 0
        for shard, count in self.summary.shards:
            of = self._rows.at(np.arange(first, first + count))
            first += count
            yield shard, self._rows.strings("image_id", of), _normalized(self._rows.vectors(f"{context}_vector", of))


def matrix(vectors: Any) -> Tensor:
    """A column of float16 vectors -> (rows, D) float32, normalised again because rounding changed the norms."""
    values = np.concatenate([chunk.flatten().to_numpy() for chunk in vectors.chunks])
    return _normalized(values.reshape(len(vectors), -1))


def _normalized(vectors: npt.NDArray[np.float16]) -> Tensor:
    return normalize(torch.from_numpy(vectors.astype(np.float32)), dim=-1)


def _schema(width: int) -> pa.Schema:
    vector, strings = pa.list_(pa.float16(), width), pa.list_(pa.string())
    kinds = {"image_id": pa.string(), "caption": pa.string(), "questions": strings, "answers": strings}
    kinds |= {"caption_vector": vector, "dialogue_vector": vector}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _usable(dataset: DatasetFolder, source: Source, kept_only: bool) -> Iterator[list[dict[str, Any]]]:
    for rows in read_rows(dataset, source, ["image_id", "caption", "texts"], kept_only=kept_only):
        if usable := [row for row in rows if row["texts"] and (row["caption"] or "").strip()]:
            yield usable


def _encode(rows: list[dict[str, Any]], text_vectors: TextVectors, schema: pa.Schema) -> pa.RecordBatch:
    pairs = [[Pair(pair["user"], pair["assistant"]) for pair in row["texts"]] for row in rows]
    captions = [row["caption"] for row in rows]
    vectors = [text_vectors(text_vectors.encoder(captions)[0]), text_vectors.of_dialogues(pairs)]
    columns = [
        [row["image_id"] for row in rows],
        captions,
        [[pair.question for pair in some] for some in pairs],
        [[pair.answer for pair in some] for some in pairs],
        *(pa.FixedSizeListArray.from_arrays(pa.array(v.half().numpy().reshape(-1)), v.shape[1]) for v in vectors),
    ]
    return pa.RecordBatch.from_pydict(dict(zip(schema.names, columns, strict=True)), schema=schema)
