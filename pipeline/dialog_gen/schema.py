"""The record: the only definition of the columns that dialogue datasets hold.

One row an image. Rows that could not be used are in `rejects/`, under a schema of their own: nothing is dropped in
silence. Both load with `datasets.load_dataset("parquet", ...)`, and the images show in the Hub's viewer.
"""

import json
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
"""Raised whenever a column changes its meaning; part of every run's configuration."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PAIR_TYPE = pa.struct([("user", pa.string()), ("assistant", pa.string())])
SAMPLING_TYPE = pa.struct(
    [("temperature", pa.float32()), ("top_p", pa.float32()), ("max_tokens", pa.int32()), ("seed", pa.int64())]
)


def _scalar(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}


def _hub_feature(kind: pa.DataType) -> Any:
    """The `datasets` feature of an Arrow type, as the `huggingface` metadata spells it."""
    if pa.types.is_list(kind):
        return {"feature": _hub_feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _hub_feature(field.type) for field in kind}
    if pa.types.is_timestamp(kind):
        return _scalar("timestamp[ms, tz=UTC]")
    return _scalar({"float": "float32"}.get(str(kind), str(kind)))


def _schema(fields: list[pa.Field]) -> pa.Schema:
    features = {field.name: _hub_feature(field.type) for field in fields}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
    # `datasets` and the Hub's viewer read the image type from here; without it they show structs of bytes.
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


_IDENTITY = [
    pa.field("image_id", pa.string(), nullable=False),  # unique in the dataset, stable: the source's own key
    pa.field("image_sha256", pa.string(), nullable=False),  # of the image's bytes as stored: duplicates show
    pa.field("images", pa.list_(IMAGE_TYPE)),  # the image as read, undecoded; may be left out on sharing
    pa.field("url", pa.string()),
    pa.field("caption", pa.string()),  # the source's caption; never part of a prompt
]
_PROVENANCE = [
    pa.field("model", pa.string(), nullable=False),
    pa.field("model_revision", pa.string()),
    pa.field("engine", pa.string(), nullable=False),
    pa.field("engine_version", pa.string(), nullable=False),
    pa.field("protocol", pa.string(), nullable=False),
    pa.field("prompt_sha256", pa.string(), nullable=False),  # of the chat template and the protocol's turns
    pa.field("sampling", SAMPLING_TYPE, nullable=False),  # seed: the one this row's last attempt decoded with
    pa.field("finish_reasons", pa.list_(pa.string()), nullable=False),  # one a turn
    pa.field("attempts", pa.int32(), nullable=False),
    pa.field("created_at", pa.timestamp("ms", tz="UTC"), nullable=False),
]

DIALOGUES: pa.Schema = _schema(
    [*_IDENTITY, pa.field("texts", pa.list_(PAIR_TYPE), nullable=False), *_PROVENANCE]  # the QA pairs in order
)
"""Accepted rows: `data/*.parquet`."""

REJECTS: pa.Schema = _schema(
    [
        *_IDENTITY,
        pa.field("status", pa.string(), nullable=False),  # "rejected": the model's words; "unreadable": the image
        pa.field("reason", pa.string(), nullable=False),  # a code of dialog_gen.parsing, .images or .dialogue
        pa.field("detail", pa.string()),
        pa.field("raw", pa.list_(pa.string()), nullable=False),  # the answers as the model wrote them, one a turn
        *_PROVENANCE,
    ]
)
"""Rows that could not be used: `rejects/*.parquet`."""

# What two runs that should agree may differ in.
VOLATILE_COLUMNS = ("created_at", "engine_version")
