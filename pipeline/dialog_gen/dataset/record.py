"""The record: the only definition of the columns that dialogue datasets hold.

One row an image. Rows that could not be used are in `rejects/`, under a schema of their own: nothing is dropped in
silence. Both load with `datasets.load_dataset("parquet", ...)`, and the images show in the Hub's viewer.
"""

import json
from typing import Any

import pyarrow as pa

from dialog_gen.core.errors import UsageError

SCHEMA_VERSION = 2
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


def hub_schema(fields: list[pa.Field]) -> pa.Schema:
    """A schema that says to `datasets` and the Hub's viewer that the column `images` holds images."""
    features = {field.name: _hub_feature(field.type) for field in fields}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
    # `datasets` and the Hub's viewer read the image type from here; without it they show structs of bytes.
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


_IDENTITY = [
    pa.field("image_id", pa.string(), nullable=False),  # unique in the dataset, stable: the source's own key
    pa.field("image_sha256", pa.string(), nullable=False),  # of the image's bytes as stored: duplicates show
    pa.field("images", pa.list_(IMAGE_TYPE)),  # the image as read, undecoded; may be left out on sharing
    pa.field("url", pa.string()),
    pa.field("source_sha256", pa.string()),  # of what `url` served, where a downloader made another image of it
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

GATES = {
    "empty": "how much of question and answer is one and the same; 1 if the answer says nothing",
    "repetition": "fraction of the answer's words that go on repeating what stands before them",
    "truncation": "1 if the answer was cut off at the token limit",
    "leak": "fraction of the answer's content words that the question gives away",
    "near_duplicate": "highest similarity to an earlier pair of the same image",
    "set_duplicate": "place among the pairs of the dataset that are nearly identical to it; 1 for the first",
    "yes_bias": "for a yes: the dataset's share of yes if it were the last that is kept",
    "language": "probability that the pair is in the expected language",
    "length": "words of the answer",
    "similarity": "cosine of image and pair under a CLIP model",
    "logprob": "mean log-probability of the answer's tokens when they were sampled",
    "self_consistency": "agreement with the answers to the same question asked again on its own",
}
"""Quality gate -> what its score says; the columns are `gate_*`."""

_QUALITY = [
    pa.field("answer_logprobs", pa.list_(pa.float32())),  # one a pair: mean log-probability of the answer's tokens
    *(pa.field(f"gate_{name}", pa.list_(pa.float32())) for name in GATES),  # one score a pair; null until gated
    pa.field("marks", pa.list_(pa.list_(pa.string()))),  # for each pair the gates that speak against it
]
PAIR_COLUMNS = tuple(field.name for field in _QUALITY)
"""Columns that have one entry a question-answer pair where they are not null."""

DIALOGUES: pa.Schema = hub_schema(
    [*_IDENTITY, pa.field("texts", pa.list_(PAIR_TYPE), nullable=False), *_QUALITY, *_PROVENANCE]
)
"""Accepted rows: `data/*.parquet`. `texts` are the QA pairs in order."""

REJECTS: pa.Schema = hub_schema(
    [
        *_IDENTITY,
        pa.field("status", pa.string(), nullable=False),  # "rejected": the model's words; "unreadable": the image
        pa.field("reason", pa.string(), nullable=False),  # a code of dialog_gen.protocols.parsing, .images or .dialogue
        pa.field("detail", pa.string()),
        pa.field("raw", pa.list_(pa.string()), nullable=False),  # the answers as the model wrote them, one a turn
        *_PROVENANCE,
    ]
)
"""Rows that could not be used: `rejects/*.parquet`."""

# What two runs that should agree may differ in.
VOLATILE_COLUMNS = ("created_at", "engine_version")


def kept_pairs(row: dict[str, Any]) -> list[dict[str, str]]:
    """The pairs of a row, given its `texts` and `marks`, that no gate speaks against."""
    marks = row["marks"] or [()] * len(row["texts"])
    return [pair for pair, against in zip(row["texts"], marks, strict=True) if not against]


def without_gates(location: str, shard: str, option: str) -> UsageError:
    """What there is to say where `option` wants kept pairs only, of a shard that no gates went over."""
    return UsageError(
        f"{location}: no gates went over shard {shard}, so that none of its pairs is known to be good: "
        f"run `dialog-gen gate {location}`, or leave out {option}."
    )
