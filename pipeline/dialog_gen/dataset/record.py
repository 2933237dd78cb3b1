"""The record: the only definition of the columns of a dialogue dataset.

There is one row per image, or per sample of several images. Rows that could not be used are in `rejects/`, with a
schema of their own: nothing is dropped silently. Both load with `datasets.load_dataset("parquet", ...)`, and the Hub's
viewer shows the images.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 3
"""Increased whenever a column changes its meaning; part of every run's configuration. `versions` reads older ones."""

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PAIR_TYPE = pa.struct([("user", pa.string()), ("assistant", pa.string())])
SAMPLING_TYPE = pa.struct(
    [("temperature", pa.float32()), ("top_p", pa.float32()), ("max_tokens", pa.int32()), ("seed", pa.int64())]
)
FURTHER_SAMPLING = ("top_k", "repetition_penalty", "stop")
"""Fields of `sampling` that only datasets have whose configuration sets one of them, as a key in config.json."""
FULL_SAMPLING_TYPE = pa.struct(
    [
        *SAMPLING_TYPE,
        ("top_k", pa.int32()),
        ("repetition_penalty", pa.float32()),
        ("stop", pa.list_(pa.string())),
    ]
)
GATE_TYPE = pa.struct([("gate", pa.string()), ("score", pa.float32()), ("marked", pa.bool_())])
"""What a quality gate says about a pair. `score` is null if the gate cannot score the pair; `marked` is true if the
score is beyond the gate's limits."""


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


def hub_schema(fields: list[pa.Field]) -> pa.Schema:
    """A schema whose metadata tells `datasets` and the Hub's viewer that the column `images` contains images."""
    features = {field.name: _hub_feature(field.type) for field in fields}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
    # Without this metadata, `datasets` and the Hub's viewer show structs of bytes.
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


_IDENTITY = [
    pa.field("image_id", pa.string(), nullable=False),  # unique in the dataset, stable: the source's own key
    pa.field("image_sha256", pa.string(), nullable=False),  # of the bytes as stored (`sha256_images`)
    pa.field("images", pa.list_(IMAGE_TYPE)),  # as read, not decoded; may be left out when published
    pa.field("url", pa.string()),
    pa.field("source_sha256", pa.string()),  # of the bytes that `url` served, if a downloader re-encoded them
    pa.field("caption", pa.string()),  # the source's caption; never part of a prompt
]
_PROVENANCE = [
    pa.field("model", pa.string(), nullable=False),
    pa.field("model_revision", pa.string()),
    pa.field("engine", pa.string(), nullable=False),
    pa.field("engine_version", pa.string(), nullable=False),
    pa.field("protocol", pa.string(), nullable=False),
    pa.field("prompt_sha256", pa.string(), nullable=False),  # of the chat template and the protocol's turns
    pa.field("sampling", SAMPLING_TYPE, nullable=False),  # `seed` is that of the row's last attempt
    pa.field("finish_reasons", pa.list_(pa.string()), nullable=False),  # one per turn
    pa.field("attempts", pa.int32(), nullable=False),
    pa.field("created_at", pa.timestamp("ms", tz="UTC"), nullable=False),
]

_QUALITY = [
    pa.field("answer_logprobs", pa.list_(pa.float32())),  # one per pair: mean log-probability of the answer's tokens
    pa.field("gates", pa.list_(pa.list_(GATE_TYPE))),  # one list per pair; null until gates are applied
]
PAIR_COLUMNS = ("answer_logprobs", "gates")
"""Columns that have one entry per question-answer pair if they are not null."""

_TEXTS = [pa.field("texts", pa.list_(PAIR_TYPE), nullable=False)]
DIALOGUES: pa.Schema = hub_schema([*_IDENTITY, *_TEXTS, *_QUALITY, *_PROVENANCE])
"""Accepted rows: `data/*.parquet`. `texts` are the QA pairs in order."""

STATEMENTS = "statements"
"""A column that only datasets have whose protocol asks for it: for each pair a sentence that says what question and
answer say, null where the model gave none. It is also the key in config.json of these datasets."""
_WITH_STATEMENTS = hub_schema(
    [*_IDENTITY, *_TEXTS, pa.field(STATEMENTS, pa.list_(pa.string())), *_QUALITY, *_PROVENANCE]
)


REJECTS: pa.Schema = hub_schema(
    [
        *_IDENTITY,
        pa.field(
            "status", pa.string(), nullable=False
        ),  # "rejected": because of the answers; "unreadable": because of the image
        pa.field("reason", pa.string(), nullable=False),  # a code of dialog_gen.protocols.parsing, .images or .dialogue
        pa.field("detail", pa.string()),
        pa.field("raw", pa.list_(pa.string()), nullable=False),  # the answers as the model wrote them, one per turn
        *_PROVENANCE,
    ]
)
"""Rows that could not be used: `rejects/*.parquet`."""


def _with_full_sampling(schema: pa.Schema) -> pa.Schema:
    place = schema.get_field_index("sampling")
    return hub_schema(list(schema.set(place, pa.field("sampling", FULL_SAMPLING_TYPE, nullable=False))))


_SCHEMAS = {
    (kind, full): _with_full_sampling(schema) if full else schema
    for kind, schema in (("dialogues", DIALOGUES), (STATEMENTS, _WITH_STATEMENTS), ("rejects", REJECTS))
    for full in (False, True)
}


def dialogues_schema(columns: Collection[str], sampling: Collection[str] = ()) -> pa.Schema:
    """The schema of accepted rows that have these columns: that of the dialogues, with the optional ones among them.

    `sampling` are the fields of the column `sampling`, which may have the optional ones too.
    """
    return _SCHEMAS[STATEMENTS if STATEMENTS in columns else "dialogues", has_further_sampling(sampling)]


def rejects_schema(sampling: Collection[str] = ()) -> pa.Schema:
    """The schema of rows that could not be used; `sampling` as for `dialogues_schema`."""
    return _SCHEMAS["rejects", has_further_sampling(sampling)]


def has_further_sampling(names: Collection[str]) -> bool:
    """Whether one of the optional fields of `sampling` is among these names."""
    return any(name in names for name in FURTHER_SAMPLING)


def sampling_fields(*settings: Collection[str]) -> tuple[str, ...]:
    """The fields of the column `sampling` in a dataset whose protocols have these settings, as config.json names them.

    They are the keys of config.json itself, and those of each of its `fallbacks`.
    """
    full = any(map(has_further_sampling, settings))
    return tuple(field.name for field in (FULL_SAMPLING_TYPE if full else SAMPLING_TYPE))


def stored_sampling(schema: pa.Schema) -> tuple[str, ...]:
    """The fields of the column `sampling` in a file with this schema; none if it lacks the column."""
    kind = schema.field("sampling").type if "sampling" in schema.names else pa.struct([])
    return tuple(field.name for field in kind) if pa.types.is_struct(kind) else ()


# Columns in which two runs with the same input and configuration may differ.
VOLATILE_COLUMNS = ("created_at", "engine_version")


def stored_images(row: Mapping[str, Any]) -> list[bytes]:
    """The bytes of the images of a row, in order; empty if they were left out. Needs the column `images`."""
    return [image["bytes"] for image in row["images"] or () if image["bytes"] is not None]


def marking_gates(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the gates that mark a pair; `scores` is the pair's entry in the column `gates`."""
    return [score["gate"] for score in scores if score["marked"]]


def kept_places(row: Mapping[str, Any]) -> list[int]:
    """The numbers of the pairs that no gate marks; of all pairs if no gate was applied."""
    gates = row["gates"] or [()] * len(row["texts"])
    pairs = zip(row["texts"], gates, strict=True)
    return [place for place, (_, scores) in enumerate(pairs) if not marking_gates(scores)]


def kept_pairs(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The pairs of a row that no gate marks; all pairs if no gate was applied. Needs columns `texts` and `gates`."""
    return [row["texts"][place] for place in kept_places(row)]
