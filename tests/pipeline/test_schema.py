import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dialog_gen.dataset.record import DIALOGUES, REJECTS, VOLATILE_COLUMNS

NOW = datetime(2025, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
RED = (255, 0, 0)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), RED).save(buffer, "PNG")
    return buffer.getvalue()


COMMON: dict[str, Any] = {
    "image_sha256": "00" * 32,
    "images": [{"bytes": png(), "path": "a.png"}],
    "model": "m",
    "engine": "e",
    "engine_version": "1",
    "protocol": "p",
    "prompt_sha256": "11" * 32,
    "sampling": {"temperature": 0.5, "top_p": 1.0, "max_tokens": 9, "seed": 2**40},
    "finish_reasons": ["stop", "length"],
    "attempts": 1,
    "created_at": NOW,
}
PAIRS = [{"user": "What?", "assistant": "A cat."}, {"user": "Why?", "assistant": "Née so 😀"}]
DIALOGUE = COMMON | {"image_id": "d", "texts": PAIRS, "url": "http://x/a.png", "caption": "c", "model_revision": "r"}
REJECT = COMMON | {"image_id": "r", "status": "rejected", "reason": "no_pairs", "detail": None, "raw": ["", "x"]}


def load(tmp_path: Path, schema: pa.Schema, *rows: dict[str, Any]) -> datasets.Dataset:
    pq.write_table(pa.Table.from_pylist(list(rows), schema), tmp_path / "rows.parquet")
    files, cache = str(tmp_path / "rows.parquet"), str(tmp_path / "cache")
    return datasets.load_dataset("parquet", data_files=files, cache_dir=cache, split="train")


@pytest.mark.parametrize(("schema", "row"), [(DIALOGUES, DIALOGUE), (REJECTS, REJECT)], ids=["dialogues", "rejects"])
def test_datasets_reads_what_was_written(tmp_path: Path, schema: pa.Schema, row: dict[str, Any]) -> None:
    loaded = load(tmp_path, schema, row)
    assert loaded.column_names == schema.names
    assert loaded.features["images"] == datasets.List(datasets.Image())
    read = loaded[0]
    (image,) = read.pop("images")
    assert (image.size, image.convert("RGB").getpixel((5, 3))) == ((6, 4), RED)
    expected = {name: row.get(name) for name in schema.names if name != "images"}
    assert read == expected


def test_images_may_be_left_out_and_unreadable_ones_kept(tmp_path: Path) -> None:
    broken = [{"bytes": b"not an image", "path": None}]
    loaded = load(tmp_path, REJECTS, REJECT | {"images": None}, REJECT | {"images": broken})
    assert loaded[0]["images"] is None
    assert loaded.cast_column("images", datasets.List(datasets.Image(decode=False)))[1]["images"] == broken


@pytest.mark.parametrize("schema", [DIALOGUES, REJECTS], ids=["dialogues", "rejects"])
def test_the_features_told_to_the_hub_are_the_columns_types(schema: pa.Schema) -> None:
    features = datasets.Features.from_dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    # Where the two disagree, `datasets` drops the feature in silence.
    told = {field.name: field.type for field in features.arrow_schema}
    assert told == {field.name: field.type for field in schema}
    assert features["images"] == datasets.List(datasets.Image())


@pytest.mark.parametrize("schema", [DIALOGUES, REJECTS], ids=["dialogues", "rejects"])
def test_what_may_differ_is_a_column(schema: pa.Schema) -> None:
    assert set(VOLATILE_COLUMNS) <= set(schema.names)
