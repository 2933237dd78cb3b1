"""The dataset card, which is the README.md of a repository on the Hub. It is made from the data and notes of a dataset.

The same dataset gives the same card. `card.md.jinja` is its template. Texts of models, web pages and users are escaped,
so that they are shown literally and cannot become links or HTML.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCardData

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.version import __version__
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.readme import metadata_of
from dialog_gen.dataset.record import (
    DIALOGUES,
    REJECTS,
    SCHEMA_VERSION,
    STATEMENTS,
    dialogues_schema,
    rejects_schema,
    sampling_fields,
)
from dialog_gen.gates.base import description_of
from dialog_gen.protocols.protocol import load_protocol, shipped_protocols
from dialog_gen.publish.bucket import Bucket
from dialog_gen.publish.card_data import CardData, GateNotes, KnownModel, card_data, known_model
from dialog_gen.publish.card_data import without_images as leave_out_images
from dialog_gen.publish.compact import has_images
from dialog_gen.publish.hub import check_name
from dialog_gen.publish.markdown import Markdown, markdown_template, plain, rate

COLUMN_NOTES = {
    "image_id": "the source's own key, unique in the dataset",
    "image_sha256": "hash of the image's bytes as stored; of several images, the hash of their hashes",
    "images": "a list with the image as it was read, or with all of a sample; null if they were left out",
    "url": "where the image came from",
    "source_sha256": "hash of the bytes that the URL served, if the image was stored in another form",
    "caption": "the source's caption of the image; the model never saw it",
    "texts": "the question-answer pairs, in order",
    "statements": "for each pair a sentence in which the model says the same; null where it gave none",
    "answer_logprobs": "for each pair the mean log-probability of the answer's tokens",
    "gates": "for each pair the quality gates with their scores, and whether they marked it; null if none was applied",
    "model": "the model that generated the texts",
    "model_revision": "the model's commit",
    "engine": "the engine that ran the model",
    "engine_version": "the engine's version",
    "protocol": "the list of prompts",
    "prompt_sha256": "hash of the chat template and the prompts",
    "sampling": "how answers were decoded; the seed is this row's own",
    "finish_reasons": "how each turn's answer ended",
    "attempts": "number of attempts until the answer had the requested form",
    "created_at": "time of the answer",
    "status": "rejected: because of the model's answer; unreadable: because of the image",
    "reason": "code of the reason",
    "detail": "details of the reason",
    "raw": "the answers as the model wrote them",
}
"""Column of the record -> description of its content in the card."""

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)
# The Hub's identifiers of licences for datasets.
_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "unlicense", "gfdl", "llama2", "c-uda", "other", "unknown"),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl"),
)
_DECODING = ("temperature", "top_p", "max_tokens", "seed", "attempts", "dtype", "deterministic")


def card(
    dataset: str | Path | DatasetFolder,
    repo: str,
    *,
    licence: str | None = None,
    link_rot: Path | None = None,
    without_images: bool = False,
) -> str:
    """The dataset card that `push` would publish with these arguments, as Markdown. Needs no network and no token.

    Raises UsageError for wrong arguments, and for a damaged dataset.
    """
    check_licence(licence)
    bucket = Bucket.of(repo)
    if bucket is None:
        check_name(repo)
    data = card_data(open_dataset(dataset), link_rot=link_rot)
    if without_images:
        leave_out_images(data)
    return make_card(data, bucket.url if bucket else repo, licence=licence)


def check_licence(licence: str | None) -> None:
    """Raises UsageError for a licence without any character."""
    if licence is not None and not licence.strip():
        raise UsageError("--licence is empty: give an SPDX identifier such as cc-by-4.0, or the terms in words.")


def make_card(data: CardData, repo: str, *, licence: str | None = None, thumbnails: str | None = None) -> str:
    """The text of the card for a dataset in the repository `repo` (USER/NAME), or in a bucket (hf://buckets/...).

    `licence` is chosen by the publisher: an SPDX identifier or the terms in words. `thumbnails` is the path of a
    picture in the repository.
    """
    families = {name: known_model(name) for name in dict.fromkeys(made[0] for made in data.made_with)}
    template = markdown_template(files("dialog_gen.publish").joinpath("card.md.jinja").read_text(encoding="utf-8"))
    text = template.render(
        header=Markdown("\n".join(_header(data, repo, licence))),
        data=data,
        totals=data.totals,
        gates=data.gates,
        images=data.images,
        licence=licence,
        name=repo.rpartition("/")[2],
        repo=Markdown(repo),
        in_bucket=Bucket.of(repo) is not None,
        thumbnails=thumbnails and Markdown(thumbnails),
        citation=_citation(data, repo),
        version=Markdown(__version__),
        schema_version=SCHEMA_VERSION,
        with_images=has_images(data.config),
        models=list(families),
        columns=_columns(dialogues_schema(data.config, _sampling(data))),
        null_columns=[Markdown(f"`{name}`") for name in data.null_columns.get("data", [])],
        rejects_columns=_columns(REJECTS, without=DIALOGUES.names),
        counts=_counts(data),
        reasons=[(status, *item) for status, counts in data.totals.reasons.items() for item in counts.items()],
        made_with=[(*made, count) for made, count in sorted(data.made_with.items())],
        decoding=_decoding(data.config),
        fallbacks=[(made["protocol"], _decoding(made)) for made in data.config.get("fallbacks", [])],
        protocols=[_protocol(name) for name in sorted({made[4] for made in data.made_with})],
        gate_rows=_gates(data.gates) if data.gates else [],
        terms=dict.fromkeys(_terms(name, family) for name, family in families.items()),
        contamination=[_contamination(name, family) for name, family in families.items()],
    )
    return text.rstrip("\n") + "\n"


def _citation(data: CardData, repo: str) -> Markdown:
    """An entry for BibTeX. Of the characters that a repository's name may contain, LaTeX obeys one."""
    bucket = Bucket.of(repo)
    user, _, name = (bucket.id if bucket else repo).partition("/")
    latex = name.replace("_", r"\_")
    url = f"https://huggingface.co/{'buckets' if bucket else 'datasets'}/{user}/{name}"
    fields = {
        "title": f"{latex}: question-answer dialogues about {count_of(data.totals.accepted, 'image', grouped=True)}",
        "author": f"{{{user}}}",
        "year": data.year,
        "howpublished": f"\\url{{{url}}}",
        "note": f"Made with dialog-gen {__version__}",
    }
    lines = [f"  {key} = {{{value}}}," for key, value in fields.items() if value is not None]
    return Markdown("\n".join([f"@misc{{{re.sub('[^A-Za-z0-9]+', '-', name)},", *lines, "}"]))


def _decoding(settings: Mapping[str, Any]) -> list[str]:
    # That --deterministic was not asked for does not say that the texts are not reproducible.
    return [
        f"{key} {settings[key]}" for key in _DECODING if settings.get(key) is not None and settings[key] is not False
    ]


def _terms(name: str, family: KnownModel | None) -> Markdown:
    unknown = f"the terms of {plain(name)} apply; nothing is recorded about them here."
    return Markdown(family.terms if family else unknown)


def _contamination(name: str, family: KnownModel | None) -> Markdown:
    unknown = f"Nothing is recorded about what {plain(name)} was trained on: assume that it saw public benchmarks."
    return Markdown(family.trained_on if family else unknown)


def _columns(schema: pa.Schema, *, without: Sequence[str] = ()) -> list[tuple[object, ...]]:
    """(name, type, description) of each column of a schema."""
    return [
        (Markdown(f"`{name}`"), Markdown(f"`{_type(feature)}`"), Markdown(COLUMN_NOTES[name]))
        for name, feature in ((feature["name"], feature) for feature in yaml_features(schema))
        if name not in without
    ]


def _type(feature: Any) -> str:
    if isinstance(feature, str):
        return feature
    if isinstance(feature, list):
        return f"{{{', '.join(field['name'] for field in feature)}}}"
    if "list" in feature:
        return f"list of {_type(feature['list'])}"
    return _type(feature.get("struct") or feature["dtype"])


def _counts(data: CardData) -> list[tuple[object, ...]]:
    found = data.totals
    shares = {
        "accepted": found.accepted,
        "rejected: no answer of the requested form": found.rejected,
        "unreadable images": found.unreadable,
    }
    return [
        (Markdown("images given to the model"), found.images, ""),
        *((Markdown(name), count, rate(count, found.images)) for name, count in shares.items()),
        *(
            (Markdown(f"accepted dialogues of the fallback protocol {plain(name)}"), count, rate(count, found.images))
            for name, count in found.fallbacks.items()
        ),
        (Markdown("question-answer pairs"), data.pairs, ""),
        *([(Markdown("pairs with a statement"), data.statements, "")] if STATEMENTS in data.config else []),
    ]


def _protocol(name: str) -> dict[str, Any]:
    turns = [turn.user for turn in load_protocol(name).turns] if name in shipped_protocols() else []
    return {"name": name, "turns": turns}


def _gates(notes: GateNotes) -> list[tuple[object, ...]]:
    """(name, meaning of the score, limits, scored pairs, marked pairs, rate) of each gate."""
    return [
        (
            *(name, description_of(name), _limits(notes.settings.get(name, {}))),
            *(gate.scored, gate.marked, rate(gate.marked, notes.pairs)),
        )
        for name, gate in notes.gates.items()
    ]


def _limits(settings: Mapping[str, Any]) -> Markdown:
    sides = [(key, sign) for key, sign in (("min", "below"), ("max", "above")) if settings.get(key) is not None]
    return Markdown(" or ".join(f"{sign} {plain(settings[key])}" for key, sign in sides) or "never")


# The YAML header, which the Hub's programs read


def _header(data: CardData, repo: str, licence: str | None) -> list[str]:
    """The lines of the YAML block: licence, size, files and features."""
    return ["---", *DatasetCardData(**_metadata(data, repo, licence)).to_yaml(line_break="\n").splitlines(), "---"]


def _sampling(data: CardData) -> tuple[str, ...]:
    return sampling_fields(data.config, *data.config.get("fallbacks", ()))


def _metadata(data: CardData, repo: str, licence: str | None) -> dict[str, Any]:
    parts = [("default", "data", dialogues_schema(data.config, _sampling(data)), data.totals.accepted)]
    parts += [("rejects", "rejects", rejects_schema(_sampling(data)), data.totals.rejected + data.totals.unreadable)]
    present = [part for part in parts if part[3]]
    configs, infos = metadata_of([folder for _, folder, _, _ in present]), list[dict[str, Any]]()
    for config, (name, folder, schema, _) in zip(configs, present, strict=True):
        features = yaml_features(schema)
        if null := data.null_columns.get(folder):
            features = [feature for feature in features if feature["name"] not in null]
            config["columns"] = [feature["name"] for feature in features]
        infos.append({"config_name": name, "features": features})
    return {
        **licence_fields(licence),
        **({"language": data.languages} if data.languages else {}),
        "annotations_creators": ["machine-generated"],
        "pretty_name": repo.rpartition("/")[2],
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "size_categories": [next((name for size, name in _SIZES if data.totals.accepted < size), "n>100M")],
        "tags": ["dialog-gen", "synthetic", "image"],
        "configs": configs,
        "dataset_info": infos,
    }


def licence_fields(licence: str | None) -> dict[str, str]:
    """The keys of a card's header for the publisher's licence; terms in words are in the card itself."""
    wanted = (licence or "unknown").lower()
    return {"license": wanted} if wanted in _LICENCES else {"license": "other", "license_name": "see-the-card"}


def yaml_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns of a schema in the form of `dataset_info`."""
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
