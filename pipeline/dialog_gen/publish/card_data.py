"""The data of a dataset card: counts and examples of the texts, the notes in the dataset folder, known generators."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plain_problems import first_problem
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import Count, DatasetFolder, ShardManifest
from dialog_gen.dataset.intact import footer, intact_manifests
from dialog_gen.dataset.record import REJECTS, STATEMENTS, dialogues_schema, kept_pairs
from dialog_gen.dataset.verify import Verdict, totals
from dialog_gen.download.provenance import ImageProvenance, image_provenance
from dialog_gen.gates.words import pair_text
from dialog_gen.publish.compact import COMPACTED
from dialog_gen.publish.filled_columns import FilledColumns
from dialog_gen.publish.languages import languages_of

EXAMPLES = 5
_SAMPLED = 256
"""Number of dialogues whose language is detected."""
_MADE_WITH = ("model", "model_revision", "engine", "engine_version", "protocol")


class GateCounts(BaseModel):
    """The counts of one gate in gates.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    scored: Count
    marked: Count


class GateNotes(BaseModel):
    """The content of gates.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pairs: Count
    kept: Count
    images_kept: Count
    gates: dict[str, GateCounts]
    settings: dict[str, dict[str, Any]] = {}


@dataclass(slots=True, kw_only=True)
class CardData:
    """The data of a dataset that its card shows."""

    totals: Verdict
    config: dict[str, Any]
    images: ImageProvenance
    gates: GateNotes | None
    pairs: int = 0
    statements: int = 0
    """Number of pairs with a statement."""
    with_url: int = 0
    """Number of dialogues that have the URL of their image."""
    made_with: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])
    """(model, revision, engine, engine version, protocol) -> number of dialogues."""
    examples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """`caption` and kept `pairs` of a few dialogues. The same dataset gives the same examples."""
    languages: list[str] = field(default_factory=list[str])
    """ISO 639-1 codes of the languages of a sample, the most frequent first."""
    year: int | None = None
    """The year of the newest dialogue."""
    null_columns: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Of "data" and "rejects": the columns that are null in all rows."""


def card_data(folder: DatasetFolder, *, link_rot: Path | None = None) -> CardData:
    """Collects the data of a card from a dataset, without reading images. `link_rot` replaces its link_rot.json.

    Raises UsageError for a damaged dataset, and for notes that are damaged or missing.
    """
    manifests = intact_manifests(folder)
    data = CardData(
        totals=totals(folder),
        config=folder.config(),
        images=image_provenance(folder, link_rot),
        gates=_gates(folder),
    )
    chosen: list[tuple[str, str, dict[str, Any]]] = []
    columns = ["image_id", "url", "caption", "texts", STATEMENTS, "gates", "created_at", *_MADE_WITH]
    for table in (table for s in manifests if s.data for table in folder.row_groups(s.data, columns)):
        for row in table.to_pylist():
            data.year = max(data.year or 0, row["created_at"].year)
            data.pairs += len(row["texts"])
            data.statements += sum(statement is not None for statement in row.get(STATEMENTS) or ())
            data.with_url += bool(row["url"])
            data.made_with[tuple(str(row[name]) for name in _MADE_WITH)] += 1
            if pairs := kept_pairs(row):
                rank = hashlib.sha256(row["image_id"].encode()).hexdigest()
                chosen.append((rank, row["image_id"], {"caption": row["caption"], "pairs": pairs}))
        chosen = heapq.nsmallest(_SAMPLED, chosen, key=lambda item: item[:2])
    data.examples = [example for *_, example in chosen[:EXAMPLES]]
    data.languages = languages_of(" ".join(map(pair_text, example["pairs"])) for *_, example in chosen)
    data.null_columns = _null_columns(folder, manifests)
    return data


def without_images(data: CardData) -> None:
    """Makes the data those of the same dataset published without its images."""
    data.config = {**data.config, COMPACTED: {"images": False}}
    data.null_columns = {
        part: [name for name in schema.names if name in {*data.null_columns[part], "images"}]
        for part, schema in _schemas(data.config).items()
    }


def _schemas(config: Mapping[str, Any]) -> dict[str, pa.Schema]:
    return {"data": dialogues_schema(config), "rejects": REJECTS}


def _null_columns(folder: DatasetFolder, manifests: Iterable[ShardManifest]) -> dict[str, list[str]]:
    filled = FilledColumns()
    for entry in (entry for manifest in manifests for entry in manifest.files):
        filled.add(entry.path.partition("/")[0], footer(folder, entry))
    return {
        part: [name for name in schema.names if name not in filled.of(part)]
        for part, schema in _schemas(folder.config()).items()
    }


def _gates(folder: DatasetFolder) -> GateNotes | None:
    try:
        return GateNotes.model_validate(unsealed(folder.read("gates.json")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(
            f"{folder.location}/gates.json is damaged ({first_problem(error)}): `dialog-gen gate` writes it again."
        ) from None


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A family of generators, with its training data and the terms that apply to its texts."""

    names: tuple[str, ...]
    """Parts of the names of its models, in lower case."""
    trained_on: str
    terms: str


KNOWN_MODELS = (
    KnownModel(
        ("llava-1.5", "llava-v1.5"),
        "LLaVA-1.5 was tuned on 665 K conversations that include VQAv2, GQA, OK-VQA, A-OKVQA, OCR-VQA, TextCaps, "
        "RefCOCO and Visual Genome, most of them about COCO and Visual Genome images, after 558 K image-text pairs of "
        "LAION, CC and SBU (arXiv:2310.03744). Dialogues about those images may repeat its training data, and "
        "results on these benchmarks, or on others with COCO images, are not those of a model that never saw them.",
        "LLaVA-1.5 is based on Vicuna 1.5 (Llama 2 Community License) and on instructions that GPT-4 wrote (OpenAI's "
        "terms of use).",
    ),
    KnownModel(
        ("blip2", "blip-2"),
        "BLIP-2 was pre-trained on 129 M images: COCO, Visual Genome, CC3M, CC12M, SBU and 115 M of LAION-400M "
        "(arXiv:2301.12597). Its answers about images from those sets may repeat the captions it was trained on.",
        "BLIP-2 is based on OPT (Meta's OPT licence, for non-commercial research) or Flan-T5 (Apache-2.0).",
    ),
    KnownModel(
        ("llava-next", "llava-v1.6", "llava-1.6"),
        "LLaVA-NeXT was tuned on LLaVA-1.5's mixture, which has COCO and Visual Genome images and their "
        "questions, and on documents, charts and conversations that users gave. Results on COCO and VQA are "
        "not those of a model that never saw them.",
        "LLaVA-NeXT is based on Mistral (Apache-2.0) or Vicuna (Llama 2 Community License), and on instructions that "
        "GPT-4 wrote (OpenAI's terms of use).",
    ),
    KnownModel(
        ("llava-onevision",),
        "LLaVA-OneVision was tuned on 3.2 M single-image samples and more with several images and videos "
        "(arXiv:2408.03326), among them VQAv2, GQA and others about COCO images. Results on these are not those of a "
        "model that never saw them.",
        "LLaVA-OneVision is based on Qwen2 (Apache-2.0), and on texts of other models, GPT-4V among them.",
    ),
    KnownModel(
        ("qwen2.5-vl", "qwen3-vl"),
        "The images that Qwen-VL models were trained on are not listed (arXiv:2502.13923 describes their "
        "kinds): take it that it has seen COCO, VQA and every other public set.",
        "Qwen2.5-VL 3B is under the Qwen Research License, without commercial use; the 7B model and Qwen3-VL are under "
        "Apache-2.0. See the model card.",
    ),
    KnownModel(
        ("smolvlm2",),
        "SmolVLM2 was trained on The Cauldron, Docmatix, video sets and LLaVA-OneVision's data "
        "(arXiv:2504.05299), which contain VQAv2 and other sets about COCO images. Results on these are not "
        "those of a model that never saw them.",
        "SmolVLM2 is under Apache-2.0.",
    ),
    KnownModel(
        ("internvl3",),
        "InternVL3 was trained on a mixture of public sets and of its own (arXiv:2504.10479), COCO and VQA among them. "
        "Results on these are not those of a model that never saw them.",
        "InternVL3 is based on Qwen2.5. See the model card for the terms of each size.",
    ),
    KnownModel(
        ("gemma-3",),
        "The images that Gemma 3 was trained on are not listed (arXiv:2503.19786): take it that it has seen "
        "COCO, VQA and every other public set.",
        "Gemma 3 is under the Gemma Terms of Use, which also bind data made with it to train other models.",
    ),
    KnownModel(
        ("paligemma2",),
        'PaliGemma 2 was pre-trained on WebLI and CC3M and, as "mix", tuned on COCO captions, VQAv2, OK-VQA and others '
        "(arXiv:2412.03555). Results on these are not those of a model that never saw them.",
        "PaliGemma 2 is under the Gemma Terms of Use.",
    ),
    KnownModel(
        ("shapes-",),
        "This generator was trained on scenes of the embedded world `shapes`, without its test split.",
        "The generator comes with dialog-gen, under Apache-2.0.",
    ),
)


def known_model(name: str) -> KnownModel | None:
    """The family of a model, found by the model's name; None for an unknown model."""
    # A name such as shapes-llava-1.5 contains the names of two families; the family at its start is the right one.
    by_start = [family for family in KNOWN_MODELS if name.lower().startswith(family.names)]
    containing = [family for family in KNOWN_MODELS if any(part in name.lower() for part in family.names)]
    return next(iter(by_start + containing), None)
