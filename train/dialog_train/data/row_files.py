"""Arrow files of training sets and pixel sets: uncompressed, so that random rows are read without loading the file.

This module is the only definition of their columns.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from dialog_gen.clip.text.tokens import Ids, TextEncoder
from dialog_train.data.checked_rows import CHECKSUM
from dialog_train.data.columns import Elements, Lists, Numbers, crc32_of, expand
from dialog_train.data.row_table import RowTable
from dialog_train.data.token_batches import Spans

# pyarrow.compute creates its functions at import time, so the type checker does not know them.
_compute: Any = pyarrow.compute


def rows_schema(*image_fields: pa.Field) -> pa.Schema:
    """The schema of the rows; `image_fields` are the columns between an image's id and its texts."""
    ids = pa.list_(pa.int32())
    texts = {
        "caption": ids,
        "caption_truncated": pa.bool_(),
        "dialogues": pa.list_(ids),
        "dialogues_truncated": pa.list_(pa.bool_()),
        "concatenated_truncated": pa.bool_(),
    }
    fields = [pa.field(name, kind, nullable=False) for name, kind in texts.items()]
    return pa.schema([pa.field("image_id", pa.string(), nullable=False), *image_fields, *fields])


def text_columns(
    encoder: TextEncoder, captions: list[str], dialogues: list[list[str]], *, per_pair: int = 1
) -> list[pa.Array]:
    """The columns of `rows_schema` from `caption` on; `dialogues` contains the text of each QA pair of each image.

    With `per_pair` texts of each pair, only the first one of each counts as truncated, and where texts are joined.
    """
    caption_ids, caption_ends, captions_cut = encoder.flat(captions)
    pair_ids, pair_ends, pairs_cut = encoder.flat([text for texts in dialogues for text in texts])
    ends = np.cumsum([0, *map(len, dialogues)])
    frame = len(encoder.start) + len(encoder.end)
    first, of_pairs = slice(None, None, per_pair), ends // per_pair
    lengths = np.cumsum(np.diff(_from_0(pair_ends))[first] - frame)
    joined = np.diff(_from_0(lengths)[of_pairs]) + frame
    too_long = (joined > encoder.context_length) | (np.diff(_from_0(np.cumsum(pairs_cut[first]))[of_pairs]) > 0)
    offsets = pa.array(ends, pa.int32())
    return [
        id_lists(caption_ids, caption_ends),
        pa.array(captions_cut, pa.bool_()),
        pa.ListArray.from_arrays(offsets, id_lists(pair_ids, pair_ends)),
        pa.ListArray.from_arrays(pa.array(of_pairs, pa.int32()), pa.array(pairs_cut[first], pa.bool_())),
        pa.array(too_long, pa.bool_()),
    ]


def id_lists(ids: Ids, ends: Numbers) -> pa.ListArray:
    """A column of token id lists, from what `TextEncoder.flat` gives."""
    return pa.ListArray.from_arrays(pa.array(_from_0(ends), pa.int32()), pa.array(ids))


def _from_0(ends: Any) -> Numbers:
    return np.concatenate([np.zeros(1, np.int64), ends])


class RowFiles(RowTable):
    """The rows of a training or pixel set."""

    def __init__(
        self, folder: Path, shards: Iterable[tuple[str, int]], column: str, shape: Sequence[int], per_pair: int = 1
    ) -> None:
        """`column`: the numbers that represent the image; `shape`: their shape per row; see `RowTable`.

        `per_pair`: the texts of each QA pair, of which the first one is the pair's own.
        """
        super().__init__(folder, shards)
        self.per_pair = per_pair
        self.shape = tuple(shape)
        self._column = column

    def images(self, of: Elements) -> npt.NDArray[Any]:
        """The numbers of each row's image (N, *shape)."""
        return self.vectors(self._column, of).reshape(-1, *self.shape)

    def views(self, of: Elements, views: Numbers) -> npt.NDArray[Any]:
        """One view of each image: row `views` (N,) of its numbers (N, shape[1])."""
        return self.vectors(self._column, of, self.shape[0], views)

    def image_id_crcs(self, of: Elements) -> npt.NDArray[np.uint32]:
        """The CRC-32 of each image's id."""
        return crc32_of(self.columns["image_id"], of)

    def id_blocks(self, column: str) -> Spans:
        """For each piece, where all token ids of its captions or dialogues are."""
        texts: Lists = self.columns[column]
        if isinstance(texts.inner, Lists):
            texts = texts.inner
        pieces = np.arange(len(texts.values.lengths))
        return Spans(texts.values.places(Elements(pieces, pieces * 0, texts.values.lengths)), texts.values.lengths)

    def image_ids(self, of: Elements) -> list[str]:
        """The ids of the images."""
        return self.strings("image_id", of)

    def captions(self, of: Elements) -> Spans:
        """Where the captions' token ids are."""
        return _spans(self.columns["caption"], of)

    def pair_counts(self, of: Elements) -> Numbers:
        """The number of QA pairs of each image."""
        pairs = self.columns["dialogues"].elements(of)
        return (pairs.end - pairs.start) // self.per_pair

    def pairs(self, of: Elements, numbers: Numbers) -> Spans:
        """Where the token ids of one QA pair of each image are; `numbers` counts them from 0."""
        dialogues = self.columns["dialogues"]
        start = dialogues.elements(of).start + numbers * self.per_pair
        return _spans(dialogues.inner, Elements(of.piece, start, start + 1))

    def candidates(self, of: Elements, numbers: Numbers) -> Spans:
        """Where the token ids of all texts of one QA pair of each image are, row by row."""
        dialogues = self.columns["dialogues"]
        first = dialogues.elements(of).start + numbers * self.per_pair
        start = expand(first, np.full(len(first), self.per_pair))
        return _spans(dialogues.inner, Elements(np.repeat(of.piece, self.per_pair), start, start + 1))

    def all_pairs(self, of: Elements) -> tuple[Spans, Numbers]:
        """Where the token ids of all QA pairs are, and the number of pairs of each image."""
        dialogues = self.columns["dialogues"]
        pairs = dialogues.elements(of)
        counts = (pairs.end - pairs.start) // self.per_pair
        start = np.repeat(pairs.start, counts) + expand(counts * 0, counts) * self.per_pair
        return _spans(dialogues.inner, Elements(np.repeat(of.piece, counts), start, start + 1)), counts


def _spans(texts: Lists, of: Elements) -> Spans:
    ids = texts.elements(of)
    return Spans(texts.values.places(ids), ids.end - ids.start)


def open_rows(file: Path) -> Any:
    """Memory-maps a file as an Arrow table. Raises OSError or ValueError."""
    # The mapping outlives the file descriptor. Keeping one open descriptor per shard could exceed the system's limit.
    try:
        with pa.memory_map(str(file)) as source:
            table: Any = pa.ipc.open_file(source).read_all()
        table.validate()
        _ = table.schema.names  # Arrow does not see that a name is no UTF-8
    except OSError:
        raise
    except pa.ArrowException as error:  # a damaged schema may look like one of another version
        raise ValueError(str(error)) from None
    return table


def are_there(folder: Path, shards: Iterable[tuple[str, int]], fingerprints: Iterable[str]) -> bool:
    """Whether the files of `shards` (name and number of rows of each) can be opened and were made from these inputs.

    `fingerprints` identify the inputs, in the order of the shards.
    """
    try:
        return all(
            (table := rows_made_from(folder / f"{name}.arrow", fingerprint)) is not None and len(table) == count
            for (name, count), fingerprint in zip(shards, fingerprints, strict=True)
        )
    except ValueError:  # as many files are not there
        return False


def rows_made_from(file: Path, fingerprint: str) -> Any:
    """Like `open_rows`, but returns None if the file is missing, damaged, without checksums or not made from this."""
    try:
        table = open_rows(file)
    except (OSError, ValueError):
        return None
    same = (table.schema.metadata or {}).get(b"fingerprint") == fingerprint.encode()
    return table if same and CHECKSUM in table.schema.names else None


def count_rows(file: Path, fingerprint: str) -> Counter[str] | None:
    """Numbers of rows, of pairs and of truncated texts in a shard; None in the same cases as `rows_made_from`."""
    table = rows_made_from(file, fingerprint)
    if table is None:
        return None

    def total(values: Any) -> int:
        return _compute.sum(values).as_py() or 0

    return Counter(
        rows=len(table),
        pairs=total(_compute.list_value_length(table["dialogues_truncated"])),
        captions=total(table["caption_truncated"]),
        dialogues=total(_compute.list_flatten(table["dialogues_truncated"])),
        concatenated=total(table["concatenated_truncated"]),
    )
