"""Reads every byte of a dataset folder and checks it against the manifests.

Each file is checked against the version of the record that it was written in.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dialog_gen.core.hashing import hash_64
from dialog_gen.core.parquet import open_parquet
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest, open_dataset, other_name
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.versions import pair_columns, schema_of

_PROBLEMS_KEPT = 100
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What `verify` found. `problems` is empty for a dataset that matches its manifests."""

    shards: int = 0
    images: int = 0
    accepted: int = 0
    rejected: int = 0
    unreadable: int = 0
    pairs: int = 0
    reasons: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    problems: list[str] = field(default_factory=list[str])
    """The first hundred problems; `problem_count` is the number of all."""
    problem_count: int = 0

    def add(self, problem: str) -> None:
        """Records a problem."""
        self.problem_count += 1
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(problem)


def totals(dataset: str | Path | DatasetFolder) -> Verdict:
    """Adds up the counts in the manifests; reads no rows. Raises UsageError if there is no dataset."""
    folder = open_dataset(dataset)
    verdict = Verdict()
    for name in folder.shards():
        if manifest := folder.manifest(name):
            _count(verdict, manifest)
        else:
            verdict.add(f"shards/{name}.json is damaged: run again to make the shard anew")
    return verdict


def verify(dataset: str | Path | DatasetFolder, *, on_progress: OnProgress = ignore_progress) -> Verdict:
    """Checks checksums, schema, counts, unique ids and image hashes, and that every file belongs to a finished shard.

    Memory use grows by 8 bytes per image. Raises UsageError only if there is no dataset, or if its configuration cannot
    be read.
    """
    folder = open_dataset(dataset)
    versions, upgrading = folder.versions(), folder.upgrade() is not None
    verdict, ids, named = Verdict(), _Ids(), set[str]()
    shards = folder.shards()
    for done, name in enumerate(shards):
        on_progress("verifying shards", done, len(shards), "shards")
        manifest = folder.manifest(name)
        if manifest is None:
            verdict.add(f"shards/{name}.json is damaged: run again to make the shard anew")
            continue
        if manifest.shard != name:
            verdict.add(f"shards/{name}.json is the manifest of another shard, {manifest.shard}")
        if manifest.config_sha256 not in versions:
            verdict.add(f"shard {name} was made with another configuration than config.json tells")
        _count(verdict, manifest)
        named |= {entry.path for entry in manifest.files}
        if upgrading:
            # During an upgrade, the rewritten rows, or the rows that they replaced, may be there under the other name.
            named |= {other_name(entry.path) for entry in manifest.files}
        _check_shard(folder, manifest, versions.get(manifest.config_sha256, SCHEMA_VERSION), verdict, ids)
    on_progress("verifying shards", len(shards), len(shards), "shards")
    for duplicate in ids.duplicates(folder):
        verdict.add(f"image_id {duplicate!r} stands in more than one row")
    for part in ("data", "rejects"):
        for file in folder.list(part):
            if f"{part}/{file}" not in named:
                verdict.add(f"{part}/{file} belongs to no finished shard: run again to finish it, or remove it")
    return verdict


def _count(verdict: Verdict, manifest: ShardManifest) -> None:
    verdict.shards += 1
    verdict.images += manifest.images
    verdict.accepted += manifest.accepted
    verdict.rejected += manifest.rejected
    verdict.unreadable += manifest.unreadable
    for status, reasons in manifest.reasons.items():
        verdict.reasons[status] = dict(sorted((Counter(verdict.reasons.get(status, {})) + Counter(reasons)).items()))


def _check_shard(folder: DatasetFolder, manifest: ShardManifest, version: int, verdict: Verdict, ids: "_Ids") -> None:
    where = f"shard {manifest.shard}"
    if manifest.accepted + manifest.rejected + manifest.unreadable != manifest.images:
        verdict.add(
            f"{where}: {manifest.accepted} accepted + {manifest.rejected} rejected + {manifest.unreadable} unreadable "
            f"are not {manifest.images} images"
        )
    counted = Counter[tuple[str, str]]()
    for entry in manifest.files:
        if problem := damage(folder, entry):
            verdict.add(f"{where}: {problem}")
            return
        try:
            with folder.open(entry.path) as file:
                if problem := _check_rows(open_parquet(file), entry, version, verdict, ids, counted):
                    verdict.add(f"{where}: {problem}")
                    return
        except Exception as error:  # noqa: BLE001 - Arrow may raise any error for a malformed file with a matching checksum
            verdict.add(f"{where}: {entry.path} cannot be read: {type(error).__name__}: {error}")
            return
    promised = Counter({("accepted", ""): manifest.accepted})
    for status, reasons in manifest.reasons.items():
        promised.update({(status, reason): count for reason, count in reasons.items()})
    if counted != +promised:
        verdict.add(f"{where}: its rows count {_readable(counted)}, its manifest {_readable(+promised)}")


def _check_rows(
    parquet: pq.ParquetFile,
    entry: FileEntry,
    version: int,
    verdict: Verdict,
    ids: "_Ids",
    counted: Counter[tuple[str, str]],
) -> str | None:
    """Adds the problems of the rows to the verdict; returns a problem only if the rows cannot be read at all."""
    # Additional columns do no harm; the columns of the record must be there and have the right type.
    schema, found = schema_of(entry.path, version), parquet.schema_arrow
    wrong = [f.name for f in schema if f.name not in found.names or found.field(f.name).type != f.type]
    if wrong:
        return f"{entry.path} lacks columns of the record or has them of another type: {wrong}"
    if parquet.metadata.num_rows != entry.rows:
        verdict.add(f"{entry.path} has {parquet.metadata.num_rows} rows, {entry.rows} are promised")
    per_pair = pair_columns(version)
    for batch in parquet.iter_batches(batch_size=100):
        for row in batch.to_pylist():
            counted[row.get("status", "accepted"), row.get("reason", "")] += 1
            ids.add(row["image_id"])
            verdict.pairs += len(row.get("texts") or ())
            for problem in _row_problems(row, per_pair):
                verdict.add(f"{entry.path}: {row['image_id']!r}: {problem}")
    return None


def damage(folder: DatasetFolder, entry: FileEntry) -> str | None:
    """Reads a whole file and says how it differs from the size and checksum in its manifest; None if it does not."""
    digest, size = hashlib.sha256(), 0
    try:
        with folder.open(entry.path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        return f"{entry.path} is missing"
    except OSError as error:
        return f"{entry.path} cannot be read: {error.strerror or error}"
    if size != entry.bytes:
        return f"{entry.path} has {size} bytes, {entry.bytes} are promised"
    return None if digest.hexdigest() == entry.sha256 else f"{entry.path} has another checksum than promised"


def _row_problems(row: dict[str, Any], per_pair: Sequence[str]) -> list[str]:
    problems: list[str] = []
    images = row["images"] or ()
    # A dataset that was published by URL and hash has no image bytes: its images cannot be checked here.
    data = images[0]["bytes"] if images else None
    if data is not None and hashlib.sha256(data).hexdigest() != row["image_sha256"]:
        problems.append("image_sha256 is not that of the image")
    if "texts" in row and not all(pair["user"] and pair["assistant"] for pair in row["texts"] or [{"user": ""}]):
        problems.append("an accepted row without a complete question-answer pair")
    pairs = len(row.get("texts") or ())
    problems += [
        f"{column} has {len(values)} entries for {pairs} pairs"
        for column in per_pair
        if (values := row.get(column)) is not None and len(values) != pairs
    ]
    return problems


def _readable(counts: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{n} {status}{reason and f' ({reason})'}" for (status, reason), n in sorted(counts.items()))


class _Ids:
    """Finds duplicate ids among millions by their 64-bit hashes."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._open: list[int] = []

    def add(self, image_id: str) -> None:
        self._open.append(hash_64(image_id))
        if len(self._open) == 1 << 16:
            self._pack()

    def duplicates(self, folder: DatasetFolder) -> list[str]:
        self._pack()
        hashes, counts = np.unique(np.concatenate(self._chunks), return_counts=True)
        suspects = set(hashes[counts > 1].tolist())
        if not suspects:
            return []
        found = Counter[str]()
        for manifest in folder.manifests():
            for entry in manifest.files:
                try:
                    with folder.open(entry.path) as file:
                        column = open_parquet(file).read(columns=["image_id"]).column(0).to_pylist()
                except Exception:  # noqa: BLE001, S112 - damage of any kind, which was reported before
                    continue
                found.update(image_id for image_id in column if hash_64(image_id) in suspects)
        return sorted(image_id for image_id, times in found.items() if times > 1)

    def _pack(self) -> None:
        self._chunks.append(np.array(self._open, dtype=np.uint64))
        self._open = []
