"""The part of a dataset card that the Hub's programs read: licence, size, files and features, as YAML."""

import json
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData

from dialog_gen.dataset.record import DIALOGUES, REJECTS
from dialog_gen.publish.card_data import CardData

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)
# Those of the Hub's identifiers that datasets come under.
_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "unlicense", "gfdl", "llama2", "c-uda", "other", "unknown"),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl"),
)


def header(data: CardData, repo: str, licence: str | None) -> list[str]:
    """The lines of the YAML block at the beginning of a card."""
    return ["---", *DatasetCardData(**_metadata(data, repo, licence)).to_yaml(line_break="\n").splitlines(), "---"]


def _metadata(data: CardData, repo: str, licence: str | None) -> dict[str, Any]:
    parts = [("default", "data", DIALOGUES, data.totals.accepted)]
    parts += [("rejects", "rejects", REJECTS, data.totals.rejected + data.totals.unreadable)]
    there = [part for part in parts if part[3]]
    wanted = (licence or "unknown").lower()
    return {
        "license": wanted if wanted in _LICENCES else "other",
        **({} if wanted in _LICENCES else {"license_name": "see-the-card"}),
        "pretty_name": repo.rpartition("/")[2],
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "size_categories": [next((name for size, name in _SIZES if data.totals.accepted < size), "n>100M")],
        "tags": ["dialog-gen", "synthetic", "image"],
        "configs": [
            {"config_name": name, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}
            for name, folder, _, _ in there
        ],
        "dataset_info": [{"config_name": name, "features": yaml_features(schema)} for name, _, schema, _ in there],
    }


def yaml_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """A schema's columns as `dataset_info` spells them."""
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    return [{"name": name, **_yaml_feature(feature)} for name, feature in features.items()]


def _yaml_feature(feature: dict[str, Any]) -> dict[str, Any]:
    match feature.get("_type"):
        case "Value":
            return {"dtype": feature["dtype"]}
        case "Image":
            return {"dtype": "image"}
        case "List":
            inner = _yaml_feature(feature["feature"])
            return {"list": inner.get("dtype") or inner.get("struct") or inner}
        case _:
            return {"struct": [{"name": name, **_yaml_feature(inner)} for name, inner in feature.items()]}
