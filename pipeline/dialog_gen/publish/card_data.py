"""The data of a dataset card: counts and examples of the texts, the notes in the dataset folder, known generators."""

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.intact import intact_manifests
from dialog_gen.dataset.record import kept_pairs
from dialog_gen.dataset.verify import Verdict, totals
from dialog_gen.download.provenance import ImageProvenance, image_provenance

EXAMPLES = 5
_MADE_WITH = ("model", "model_revision", "engine", "engine_version", "protocol")


class GateCounts(BaseModel):
    """The counts of one gate in gates.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    scored: int
    marked: int


class GateNotes(BaseModel):
    """The content of gates.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pairs: int
    kept: int
    images_kept: int
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
    made_with: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])
    """(model, revision, engine, engine version, protocol) -> number of dialogues."""
    examples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """`caption` and kept `pairs` of a few dialogues. The same dataset gives the same examples."""


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
    columns = ["image_id", "caption", "texts", "gates", *_MADE_WITH]
    for table in (table for s in manifests if s.data for table in folder.row_groups(s.data, columns)):
        for row in table.to_pylist():
            data.pairs += len(row["texts"])
            data.made_with[tuple(str(row[name]) for name in _MADE_WITH)] += 1
            if pairs := kept_pairs(row):
                rank = hashlib.sha256(row["image_id"].encode()).hexdigest()
                chosen.append((rank, row["image_id"], {"caption": row["caption"], "pairs": pairs}))
        chosen = heapq.nsmallest(EXAMPLES, chosen, key=lambda item: item[:2])
    data.examples = [example for *_, example in chosen]
    return data


def _gates(folder: DatasetFolder) -> GateNotes | None:
    try:
        return GateNotes.model_validate_json(folder.read("gates.json"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UsageError(
            f"{folder.location}/gates.json is damaged ({error.errors()[0]['msg']}): `dialog-gen gate` writes it again."
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
        ("shapes-",),
        "This generator was trained on scenes of the embedded world `shapes`, without its test split.",
        "It comes with dialog-gen, under Apache-2.0.",
    ),
)


def known_model(name: str) -> KnownModel | None:
    """The family of a model, found by the model's name; None for an unknown model."""
    # A name such as shapes-llava-1.5 contains the names of two families; the family at its start is the right one.
    by_start = [family for family in KNOWN_MODELS if name.lower().startswith(family.names)]
    containing = [family for family in KNOWN_MODELS if any(part in name.lower() for part in family.names)]
    return next(iter(by_start + containing), None)
