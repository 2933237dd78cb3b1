"""What a dataset card is made from: one pass over the texts, and the notes that lie in the dataset folder."""

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.intact import intact_sidecars
from dialog_gen.dataset.record import kept_pairs
from dialog_gen.dataset.verify import Verdict, totals
from dialog_gen.download.provenance import ImageProvenance, image_provenance

EXAMPLES = 5
_MADE_WITH = ("model", "model_revision", "engine", "engine_version", "protocol")


class GateFound(BaseModel):
    """What gates.json says of one gate."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    scored: int
    marked: int


class GateNotes(BaseModel):
    """What gates.json says."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pairs: int
    kept: int
    images_kept: int
    gates: dict[str, GateFound]
    settings: dict[str, dict[str, Any]] = {}


@dataclass(slots=True, kw_only=True)
class CardData:
    """A dataset as its card tells of it."""

    totals: Verdict
    config: dict[str, Any]
    images: ImageProvenance
    gates: GateNotes | None
    pairs: int = 0
    made_with: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])
    """Model, revision, engine, its version, protocol -> dialogues."""
    examples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """`caption` and kept `pairs` of a few dialogues, always the same ones of the same dataset."""


def card_data(folder: DatasetFolder, *, link_rot: Path | None = None) -> CardData:
    """Reads everything but the images. Raises UsageError for a damaged dataset."""
    sidecars = intact_sidecars(folder)
    data = CardData(
        totals=totals(folder),
        config=folder.config(),
        images=image_provenance(folder, link_rot),
        gates=_gates(folder),
    )
    chosen: list[tuple[str, str, dict[str, Any]]] = []
    columns = ["image_id", "caption", "texts", "marks", *_MADE_WITH]
    for table in (table for s in sidecars if s.data for table in folder.row_groups(s.data, columns)):
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
            f"{folder.location}/gates.json is damaged ({error.errors()[0]['msg']}): `dialog-gen gate` writes it anew."
        ) from None
