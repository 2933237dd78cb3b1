"""The small JSON files of a dataset that is made of others: run.json, gates.json and images.json."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from dialog_gen.core.errors import DialogGenError
from dialog_gen.dataset.folder import DatasetFolder, ShardManifest
from dialog_gen.dataset.notes import GATES, RUN, json_object
from dialog_gen.dataset.verify import Verdict
from dialog_gen.dataset.writer import DatasetWriter
from dialog_gen.download.provenance import NAME as IMAGES
from dialog_gen.download.provenance import ImageProvenance, image_provenance

_log = logging.getLogger(__name__)

_COUNTS = ("shards", "images", "accepted", "rejected", "unreadable", "reasons", "unused")


class Tally:
    """Counts of shards, and the gates that were applied to them."""

    def __init__(self) -> None:
        self.counts = Verdict()
        self.gates = set[str | None]()

    def add(self, manifest: ShardManifest) -> None:
        """Counts a shard."""
        self.counts.count(manifest)
        self.gates.add(manifest.gates_sha256)


def copy_notes(source: DatasetFolder, store: DatasetWriter, *, overwrite: bool) -> None:
    """Copies run.json, gates.json and images.json. Without `overwrite`, files that `store` already has are kept."""
    for name in (RUN, GATES, IMAGES):
        if source.exists(name) and (overwrite or not store.exists(name)):
            store.put_bytes(name, source.read(name))


def join_notes(folders: Sequence[DatasetFolder], store: DatasetWriter, shards: Tally, *, overwrite: bool) -> None:
    """Writes the notes of a dataset made of several; `shards` are its own.

    Without `overwrite`, files that `store` already has are kept. gates.json is written if the same gates, with the same
    settings, scored all shards; otherwise a warning is logged.
    """
    if overwrite or not store.exists(RUN):
        counts = {name: getattr(shards.counts, name) for name in _COUNTS}
        runs = [(json_object(folder, RUN) or {}).get("run") for folder in folders]
        finished_at = datetime.now(UTC).isoformat(timespec="seconds")
        store.put_json(RUN, {"finished_at": finished_at, "merged": runs, "dataset": counts})
    if overwrite or not store.exists(IMAGES):
        _join_images(folders, store)
    if len(shards.gates) > 1:
        _log.warning(
            "not all shards of %s have the same gates and settings: `dialog-gen gate %s` applies gates to all",
            *(store.location, store.location),
        )
    elif None not in shards.gates and (overwrite or not store.exists(GATES)):
        _join_gates(folders, store)


def _join_images(folders: Sequence[DatasetFolder], store: DatasetWriter) -> None:
    """Each field has what the datasets have there, if it differs one after the other."""
    found = [image_provenance(folder) for folder in folders]
    texts = {
        name: "; ".join(dict.fromkeys(filter(None, (getattr(of_one, name) for of_one in found)))) or None
        for name in ("manifest", "description", "homepage", "licence")
    }
    same = all(of_one == found[0] for of_one in found)
    joined = ImageProvenance(**texts, link_rot=found[0].link_rot if same else None)
    if joined != ImageProvenance():
        store.put_json(IMAGES, joined.model_dump(mode="json"))


def _join_gates(folders: Sequence[DatasetFolder], store: DatasetWriter) -> None:
    from dialog_gen.gates.settings import load_gates
    from dialog_gen.gates.summary import gate_summary

    noted = ((json_object(folder, GATES) or {}).get("settings") for folder in folders)
    settings = next((found for found in noted if isinstance(found, dict)), None)
    try:
        if settings is None:
            raise DialogGenError("no dataset has a readable gates.json")
        summary = gate_summary(store, load_gates(settings))
    except DialogGenError as error:
        _log.warning("%s gets no gates.json (%s): `dialog-gen gate` makes one", store.location, error)
        return
    store.put_json(GATES, summary)
    store.record_gates(summary["settings"])
