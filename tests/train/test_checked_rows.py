"""Derived data: a flipped byte is found before a batch is made of it, and what was removed is made anew."""

import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.config import PixelSettings
from dialog_train.data.checked_rows import CHECKSUM, rows_writer
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_set import PixelSet
from dialog_train.data.pixel_sources import open_pixel_source
from dialog_train.data.row_files import open_rows
from dialog_train.data.row_table import RowTable
from dialog_train.data.training_set import TrainingSet, build_training_set
from dialog_train.data.vectors import VectorStore, embed_dataset

Content = list[tuple[str, torch.Tensor]]


def flip(file: Path, rng: random.Random, count: int) -> None:
    content = bytearray(file.read_bytes())
    for place in rng.sample(range(len(content)), count):
        content[place] ^= rng.randrange(1, 256)
    # A new file: the old one may still be mapped.
    file.unlink()
    file.write_bytes(content)


def crc_by_hand(row: dict[str, Any]) -> int:
    """The CRC-32 of a row of `test_each_value_of_a_row_counts`, as it is stored since there are checksums."""
    texts: list[list[int]] = row["texts"]
    ends = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    parts = [
        np.array([0, len(row["id"])], np.int32),
        row["id"].encode(),
        np.array(row["vector"], np.float16),
        np.array([0, len(texts)], np.int32),
        ends,
        np.array([number for text in texts for number in text], np.int32),
        np.array([row["flag"]]),
    ]
    return zlib.crc32(b"".join(bytes(part) if isinstance(part, bytes) else part.tobytes() for part in parts))


def test_each_value_of_a_row_counts(tmp_path: Path) -> None:
    kinds: dict[str, pa.DataType] = {
        "id": pa.string(),
        "vector": pa.list_(pa.float16(), 2),
        "texts": pa.list_(pa.list_(pa.int32())),
        "flag": pa.bool_(),
    }
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
    rows: list[dict[str, Any]] = [
        {"id": "a", "vector": [1.0, 2.0], "texts": [[1, 2], [3]], "flag": True},
        {"id": "", "vector": [1.0, 2.0], "texts": [], "flag": False},
        {"id": "b", "vector": [0.0, 2.0], "texts": [[]], "flag": True},
    ]

    def written(content: list[dict[str, Any]], start: int = 0) -> Any:
        with rows_writer(tmp_path / "rows.arrow", schema, "f") as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(content, schema=schema).slice(start))
        (tmp_path / "rows.arrow").rename(tmp_path / "read.arrow")
        # All rows are intact, whatever batch they are in.
        RowTable(tmp_path, [("read", len(content) - start)]).at(range(len(content) - start))
        (batch,) = open_rows(tmp_path / "read.arrow").to_batches()
        return batch

    good = written(rows)
    assert good.drop_columns([CHECKSUM]).to_pylist() == rows
    assert good[CHECKSUM].to_pylist() == [crc_by_hand(row) for row in rows]
    # The checksums do not depend on where a row is.
    assert written(rows, 1)[CHECKSUM].to_pylist() == good[CHECKSUM].to_pylist()[1:]
    others = [
        {"id": "A"},
        {"id": "aa"},
        {"vector": [1.0, 2.001]},
        {"texts": [[1], [2, 3]]},
        {"texts": [[1, 2, 3]]},
        {"texts": [[1, 2], [4]]},
        {"flag": False},
    ]
    checksums = [written([rows[0] | other])[CHECKSUM].to_pylist()[0] for other in others]
    assert len({*checksums, good[CHECKSUM][0].as_py()}) == len(others) + 1


def training_set(folder: Path, clip: Path, dialogues: Path) -> Any:
    dataset, model = DatasetFolder.existing(str(dialogues)), load_clip(str(clip))
    embed_dataset(dataset, model, folder / "vectors", device="cpu")
    build_training_set(dataset, VectorStore(folder / "vectors"), model, folder / "set")
    return TrainingSet(folder / "set")


def pixel_set(folder: Path, clip: Path, dialogues: Path) -> Any:
    source = open_pixel_source(PixelSettings(dialogues=str(dialogues), work=folder))
    build_pixel_set(source, load_clip(str(clip)), folder / "set")
    return PixelSet(folder / "set")


def content(rows: Any) -> Content:
    options: dict[str, Any] = {"dialogues": "concatenate"} if isinstance(rows, PixelSet) else {"concatenate": True}
    batch: Any = rows.batch(range(len(rows)), 0, **options)
    image = batch.pixels if isinstance(rows, PixelSet) else batch.image_vectors
    values = torch.cat([image.flatten(1), batch.captions.tokens, batch.dialogues.tokens], 1)
    return list(zip(batch.image_ids, values, strict=True))


def same(found: Content, expected: Content) -> bool:
    return len(found) == len(expected) and all(
        one == other and torch.equal(a, b) for (one, a), (other, b) in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("make", [training_set, pixel_set])
def test_flipped_bytes_give_an_error_or_the_same_rows(
    make: Any, tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path
) -> None:
    rows = make(tmp_path, tiny_clip, tiny_dialogues)
    expected = content(rows)
    file, rng, found = tmp_path / "set" / "rows" / "a.arrow", random.Random(11), 0
    good = file.read_bytes()
    for _ in range(40):
        flip(file, rng, 40)
        try:
            # Padding may have been hit.
            assert same(content(type(rows)(tmp_path / "set")), expected)
        except UsageError as error:
            found += str(file) in str(error)
        file.unlink()
        file.write_bytes(good)
    assert found > 35
    # The advice of the error.
    file.unlink()
    assert same(content(make(tmp_path, tiny_clip, tiny_dialogues)), expected)
    assert file.read_bytes() == good


def test_flipped_bytes_in_vectors(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path) -> None:
    training_set(tmp_path, tiny_clip, tiny_dialogues)
    file, rng, found = tmp_path / "vectors" / "vectors" / "a.parquet", random.Random(11), 0
    store, good = VectorStore(tmp_path / "vectors"), file.read_bytes()
    expected = store.read("a")
    for _ in range(60):
        flip(file, rng, 40)
        try:
            assert store.read("a").equals(expected)
        except UsageError as error:
            found += "a.parquet is damaged" in str(error)
        file.unlink()
        file.write_bytes(good)
    assert found > 50
