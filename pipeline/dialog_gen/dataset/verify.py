"""Reads every byte of a dataset folder and checks it against the manifests.

Each file is checked against the version of the record that it was written in. The dataset may be written to meanwhile:
what seems wrong is read again before it counts as a problem, and unfinished files are left out.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dialog_gen.core.duplicates import DuplicateFinder
from dialog_gen.core.hashing import hash_64
from dialog_gen.core.mapping import Advance, Map, map_here
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.errors import DamagedDatasetError
from dialog_gen.dataset.folder import DatasetFolder, ShardManifest, open_dataset, other_name
from dialog_gen.dataset.locks import is_being_written
from dialog_gen.dataset.notes import damaged_notes, missing_note, missing_shards
from dialog_gen.dataset.record import SCHEMA_VERSION, STATEMENTS
from dialog_gen.dataset.shard_check import CheckImages, ShardFindings, check_shard

_PROBLEMS_KEPT = 100
_SHARDS_AT_A_TIME = 16
"""Of an object store; a row group of each is in memory."""
_PARTS = ("data", "rejects")
# There are no locks on an object store: younger files that belong to no shard may be those of a run.
_UNFINISHED_S = 900


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
    unused: dict[str, int] = field(default_factory=dict[str, int])
    """Reason -> number of things in the input that were not used for any row."""
    fallbacks: dict[str, int] = field(default_factory=dict[str, int])
    """Fallback protocol -> number of the accepted images whose dialogue it made."""
    problems: list[str] = field(default_factory=list[str])
    """The first hundred problems; `problem_count` is the number of all."""
    problem_count: int = 0
    repeated_ids: int = 0
    """Number of problems that are ids in more than one row, which no repair mends."""
    damaged: list[str] = field(default_factory=list[str])
    """Paths of the manifests of damaged shards, of damaged JSON files, and of files that belong to no shard."""
    being_written: bool = False
    """Whether another process was writing to the dataset; its unfinished files are no problems."""

    def add(self, problem: str) -> None:
        """Records a problem."""
        self.problem_count += 1
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(problem)

    def count(self, manifest: ShardManifest) -> None:
        """Adds the counts of a shard."""
        self.shards += 1
        self.images += manifest.images
        self.accepted += manifest.accepted
        self.rejected += manifest.rejected
        self.unreadable += manifest.unreadable
        if manifest.unused:
            self.unused = dict(sorted((Counter(self.unused) + Counter(manifest.unused)).items()))
        if manifest.fallbacks:
            self.fallbacks = dict(sorted((Counter(self.fallbacks) + Counter(manifest.fallbacks)).items()))
        for status, reasons in manifest.reasons.items():
            before = self.reasons.setdefault(status, {})
            if reasons:
                self.reasons[status] = dict(sorted((Counter(before) + Counter(reasons)).items()))


def totals(dataset: str | Path | DatasetFolder) -> Verdict:
    """Adds up the counts in the manifests; reads no rows. Raises UsageError if there is no dataset."""
    folder = open_dataset(dataset)
    verdict = Verdict()

    def read(name: str) -> ShardManifest | str | None:
        try:
            return folder.readable_manifest(name)
        except DamagedDatasetError:
            return f"shards/{name}.json is damaged"

    for found in folder.each(read, folder.shards()):
        if isinstance(found, str):
            verdict.add(found)
        elif found is not None:  # otherwise a run is making the shard anew
            verdict.count(found)
    return verdict


def verify(
    dataset: str | Path | DatasetFolder,
    *,
    check_images: CheckImages | None = None,
    on_progress: OnProgress = ignore_progress,
    locked: bool = False,
    map_shards: Map = map_here,
) -> Verdict:
    """Checks checksums, schema, counts, unique ids and image hashes, and that every file belongs to a finished shard.

    `check_images` checks more of the rows' images; `locked` says that the caller has locked the dataset. `map_shards`
    decides where shards are read. Memory use grows by the name of each shard, not by images: the ids' hashes go to a
    temporary folder, 8 bytes per image. Raises UsageError only if there is no dataset, or if its configuration cannot
    be read; OSError if the temporary folder is full.
    """
    folder = open_dataset(dataset)
    verdict = Verdict(being_written=not locked and is_being_written(folder))
    versions, upgrading = folder.versions(), folder.upgrade() is not None
    shards = folder.shards()
    named = _NamedFiles(shards)

    # What checks images need not be able to work in threads.
    threads = 1 if check_images else min(folder.requests, _SHARDS_AT_A_TIME)
    with DuplicateFinder() as ids:
        on_progress("verifying shards", 0, len(shards), "shards")
        checked = map_shards(
            _CheckShard(folder, versions, check_images, STATEMENTS in folder.config()),
            shards,
            threads=threads,
            shared=folder.shared(),
        )
        for done, (_, (manifest, findings)) in enumerate(checked):
            for problem in findings.problems:
                verdict.add(problem)
            if findings.problems:
                verdict.damaged.append(f"shards/{shards[done]}.json")
            on_progress("verifying shards", done + 1, len(shards), "shards")
            if manifest is None:
                continue
            verdict.count(manifest)
            verdict.pairs += findings.pairs
            ids.add(findings.image_ids)
            for entry in manifest.files:
                named.add(done, entry.path)
                if upgrading:
                    # The rewritten rows, or the rows that they replaced, may be there under the other name.
                    named.add(done, other_name(entry.path))
        for duplicate in repeated_ids(folder, ids.suspects()):
            verdict.add(f"image_id {duplicate!r} stands in more than one row")
            verdict.repeated_ids += 1
    for path in (f"{part}/{file}" for part in _PARTS for file in folder.names(part)):
        if path not in named and _is_stranger(folder, path, verdict, locked):
            verdict.add(f"{path} belongs to no finished shard")
            verdict.damaged.append(path)
    for path in (f"shards/{file}" for file in folder.names("shards") if not file.endswith(".json")):
        verdict.add(f"{path} is no manifest")
        verdict.damaged.append(path)
    for part in ("shards", *_PARTS):
        if folder.is_file(part):
            verdict.add(f"{part} is a file, but must be a folder")
            verdict.damaged.append(part)
    for name in damaged_notes(folder):
        verdict.add(f"{name} is damaged")
        verdict.damaged.append(name)
    if not verdict.being_written:
        for problem in (missing_shards(folder, verdict.images), missing_note(folder)):
            if problem:
                verdict.add(problem)
    return verdict


def repeated_ids(folder: DatasetFolder, suspects: set[int]) -> list[str]:
    """The ids of more than one row, among those whose `hash_64` is suspect. Skips files that cannot be read."""
    return sorted(image_id for image_id, times in ids_among(folder, suspects).items() if times > 1)


def ids_among(folder: DatasetFolder, suspects: set[int]) -> Counter[str]:
    """Id -> number of its rows, for the ids whose `hash_64` is suspect. Skips files that cannot be read."""
    found = Counter[str]()
    for manifest in _readable_manifests(folder) if suspects else ():
        for entry in manifest.files:
            try:
                for table in folder.row_groups(entry, ["image_id"]):
                    ids = table.column(0).to_pylist()
                    found.update(image_id for image_id in ids if hash_64(image_id) in suspects)
            except Exception:  # noqa: BLE001, S112 - damage of any kind, which is reported elsewhere
                continue
    return found


def _readable_manifests(folder: DatasetFolder) -> Iterator[ShardManifest]:
    return (manifest for name in folder.shards() if (manifest := folder.manifest(name)))


@dataclass(frozen=True, slots=True)
class _CheckShard:
    """Checks the shard of a name."""

    folder: DatasetFolder
    versions: dict[str, int]
    check_images: CheckImages | None
    statements: bool
    """Whether accepted rows have a column of statements."""

    def __call__(self, name: str, advance: Advance) -> tuple[ShardManifest | None, ShardFindings]:
        return _settled(self.folder, name, self.versions, self.check_images, self.statements)


def _settled(
    folder: DatasetFolder, name: str, versions: dict[str, int], check_images: CheckImages | None, statements: bool
) -> tuple[ShardManifest | None, ShardFindings]:
    """Checks a shard until it is as promised or does not change any more."""
    while True:
        try:
            manifest = folder.readable_manifest(name)
        except DamagedDatasetError:
            return None, ShardFindings([f"shards/{name}.json is damaged"])
        if manifest is None:  # a run is making the shard anew
            return None, ShardFindings()
        known = dict(versions)
        version = versions.get(manifest.config_sha256, SCHEMA_VERSION)
        findings = check_shard(folder, manifest, version, check_images, statements=statements)
        if manifest.shard != name:
            findings.problems.insert(0, f"shards/{name}.json is the manifest of another shard, {manifest.shard}")
        elif others := [entry.path for entry in manifest.files if _place(entry.path, name) is None]:
            findings.problems.insert(0, f"shards/{name}.json names the file of another shard, {others[0]}")
        if manifest.config_sha256 not in versions:
            findings.problems.insert(0, f"shard {name} was made with another configuration than config.json tells")
        if not findings.problems:
            return manifest, findings
        versions.update(folder.versions())
        if (versions, folder.manifest(name)) == (known, manifest):
            return manifest, findings


def _is_stranger(folder: DatasetFolder, path: str, verdict: Verdict, locked: bool) -> bool:
    """Whether a file that belonged to no shard still does not, and is not being written."""
    # The lock first: once nobody writes, the manifest and the file are what they will stay.
    if (not locked and is_being_written(folder)) or folder.age_s(path, time.time()) < _UNFINISHED_S:
        verdict.being_written = True
        return False
    return folder.exists(path) and folder.owner(path) is None


class _NamedFiles:
    """The files that manifests name, in one byte per shard."""

    def __init__(self, shards: Sequence[str]) -> None:
        """`shards` is sorted."""
        self._shards, self._flags = shards, bytearray(len(shards))

    def add(self, number: int, path: str) -> None:
        """Records that the manifest of shard `number` names a file, unless the name is that of another shard's file."""
        self._flags[number] |= _place(path, self._shards[number]) or 0

    def __contains__(self, path: str) -> bool:
        stem = PurePosixPath(path).stem
        for shard in {stem, stem.removesuffix(".v2")}:
            number = bisect_left(self._shards, shard)
            if number < len(self._shards) and self._shards[number] == shard:
                place = _place(path, shard)
                if place and self._flags[number] & place:
                    return True
        return False


def _place(path: str, shard: str) -> int | None:
    """A bit for each of the four usual names of a shard's files; None for another name."""
    for bit, part in enumerate(_PARTS):
        usual = f"{part}/{shard}.parquet"
        if path == usual:
            return 1 << bit
        if path == other_name(usual):
            return 4 << bit
    return None
