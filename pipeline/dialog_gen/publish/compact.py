"""Merges a dataset's shards into larger ones for publishing: few files, with row groups that the Hub's viewer can show.

The result is a normal dataset folder. Each of its shards (`part-00000`, ...) consists of whole shards of the source. A
shard is written again if its source shards changed. So the same command resumes after an interruption, and updates the
result when the source has grown.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from dialog_gen.core.errors import UsageError, check_at_least
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.mapping import Advance, Map, map_here
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.command import command_of
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest
from dialog_gen.dataset.intact import check_unique_ids, footer
from dialog_gen.dataset.joined import Datasets, JoinedShard, joined_config, joined_shards, open_inputs
from dialog_gen.dataset.record import DIALOGUES, SCHEMA_VERSION
from dialog_gen.dataset.rewriting import stage_tables
from dialog_gen.dataset.shard_writer import BYTES_PER_GROUP, ROWS_PER_GROUP, StagedShard, Staging
from dialog_gen.dataset.versions import schema_of
from dialog_gen.dataset.writer import DatasetWriter, open_writer
from dialog_gen.executors.base import Where
from dialog_gen.publish.notes import Tally, copy_notes, join_notes

_log = logging.getLogger(__name__)

COMPACTED = "compacted"
"""The key in config.json that only merged datasets have."""
_SCHEMES = ("http://", "https://")
_Group = list[tuple[DatasetFolder, str]]
"""Shards that become one: the folder and the name of each."""
_Shards = Sequence[tuple[DatasetFolder, ShardManifest]]
# Limit for a shard without images. When its images are restored, at about 50 kB each, the shard takes about 500 MB,
# like other shards. It is also the largest amount of work that `rehydrate` repeats after an interruption.
_ROWS_WITHOUT_IMAGES = 10_000
_SHARDS_IN_ONE = 10_000
"""Limit for shards without any rows, whose manifests would take gigabytes of memory if a million became one shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactSummary:
    """The merged dataset."""

    out: str
    images: int
    shards: int
    source_shards: int
    """Number of shards of the source."""
    shards_already_done: int
    bytes: int

    def __str__(self) -> str:
        skipped = f", {self.shards_already_done} of them were there already" if self.shards_already_done else ""
        return (
            f"{self.out}: {count_of(self.images, 'image')} in {count_of(self.shards, 'shard')} of "
            f"{self.bytes / 1e6:.0f} MB in all, "
            f"made of {self.source_shards}{skipped}"
        )


def compact(
    datasets: Datasets,
    out: str | Path,
    *,
    shard_mb: int = 500,
    without_images: bool = False,
    executor: str = "local",
    ray_address: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> CompactSummary:
    """Writes the rows of datasets to `out`, a local folder or fsspec URL, in shards of about `shard_mb` MB.

    The order of rows does not change, and shards of the source are never divided. `without_images` leaves out the bytes
    of images but keeps their URLs and checksums; shards then have at most 10,000 rows. Only one row group is in memory
    at a time. `executor` decides where shards are written. Rows are written in the current version of the record, even
    if the source has an older one.

    Raises UsageError for a source with damaged shards or repeated ids, or that a process writes to, for sources of
    different configurations, and for an `out` that contains something else, is inside a source or contains one.
    """
    check_at_least("--shard-mb", shard_mb, 1)
    sources, map_shards = open_inputs(datasets, str(out)), Where(executor, ray_address).map()
    if without_images:
        rows, lacking = map(sum, zip(*map(rows_without_url, sources), strict=True))
        if lacking:
            _log.warning(
                "without a URL are %d of %s: only this dataset has their images, and `push` refuses %s",
                *(lacking, count_of(rows, "dialogue"), out),
            )
    return merge_shards(
        sources,
        str(out),
        shard_mb=shard_mb,
        images=not without_images,
        map_shards=map_shards,
        on_progress=on_progress,
    )


def merge_shards(
    sources: Sequence[DatasetFolder],
    out: str,
    *,
    shard_mb: int,
    images: bool,
    map_shards: Map = map_here,
    on_progress: OnProgress,
    only_missing: bool = False,
) -> CompactSummary:
    """Does the work of `compact`, but without its checks: `out` may be inside a source.

    `shard_mb` is in 10^6 bytes; `images` is False to leave out the bytes of images. With `only_missing`, raises
    UsageError before it changes anything if a shard of `out` would be replaced or removed.
    """
    config = joined_config(sources, free=[COMPACTED])
    with_images = [source.location for source in sources if has_images(source.config())]
    if images and 0 < len(with_images) < len(sources):
        raise UsageError(
            f"{with_images[0]} has its images, but not all other datasets have: add --without-images, or `dialog-gen "
            "rehydrate` the others first."
        )
    images = images and bool(with_images)
    groups = list[_Group]()

    def grouped() -> Iterator[tuple[DatasetFolder, ShardManifest]]:
        for group in _groups(sources, shard_mb * 10**6, images):
            groups.append([(shard.folder, shard.manifest.shard) for shard in group])
            yield from ((shard.folder, shard.manifest) for shard in group)

    check_unique_ids(sources, grouped())
    source_shards = sum(map(len, groups))
    named = [source.location for source in sources]
    arguments = {
        "dataset": named[0] if len(named) == 1 else named,
        "shard_mb": shard_mb,
        "without_images": not images,
    }
    made_by = command_of("compact", arguments, paths=["dataset"])
    wanted_config = {**config, COMPACTED: {"shard_mb": shard_mb, "images": images}}
    with open_writer(out, wanted_config, made_by=made_by) as store:
        if only_missing:
            _refuse_changed(named, store, groups)
        there, names = Tally(), set[str]()
        skipped = merged = size = 0

        def finished(manifest: ShardManifest, shards: _Shards) -> None:
            nonlocal merged, size
            there.add(manifest)
            names.add(manifest.shard)
            size += sum(entry.bytes for entry in manifest.files)
            merged += len(shards)
            on_progress("merging shards", merged, source_shards)

        def unfinished() -> Iterator[tuple[ShardManifest, _Shards]]:
            nonlocal skipped
            for number, group in enumerate(groups):
                shards = _manifests(group)
                wanted = _merged_manifest(number, shards, store.config_sha256)
                if before := store.completed(wanted.shard, wanted.input_fingerprint):
                    skipped += 1
                    finished(before, shards)
                else:
                    yield wanted, shards

        needed = [path for folder in (*sources, store) for path in folder.shared()]
        write = _Write(store.staging(apart=map_shards.elsewhere), images)
        for (_, shards), staged in map_shards(write, unfinished(), shared=needed):
            finished(store.commit(staged), shards)
        stale = set(store.shards()) - names
        for name in stale:
            store.drop(name)
        overwrite = not only_missing and (skipped < len(names) or bool(stale))
        if len(sources) == 1:
            copy_notes(sources[0], store, overwrite=overwrite)
        else:
            join_notes(sources, store, there, overwrite=overwrite)
    return CompactSummary(
        out=out,
        images=there.counts.images,
        shards=there.counts.shards,
        source_shards=source_shards,
        shards_already_done=skipped,
        bytes=size,
    )


def rows_without_url(folder: DatasetFolder) -> tuple[int, int]:
    """The number of accepted rows, and of those without an http(s) URL, whose images nobody can fetch again.

    Reads the column `url` only.
    """
    rows = having = 0
    for table in folder.tables(["url"]):
        rows += table.num_rows
        having += sum((url or "").lower().startswith(_SCHEMES) for url in table["url"].to_pylist())
    return rows, rows - having


def _refuse_changed(named: Sequence[str], store: DatasetWriter, groups: Sequence[_Group]) -> None:
    numbers = {_part_name(number): number for number in range(len(groups))}
    for name in store.shards():
        number = numbers.get(name)
        merged = None if number is None else _merged_manifest(number, _manifests(groups[number]), store.config_sha256)
        if merged is None or store.completed(name, merged.input_fingerprint) is None:
            raise UsageError(
                f"{' or '.join(named)} has changed since {store.location} was made of it: `dialog-gen compact "
                f"{' '.join(named)} --out {store.location}` makes it anew from what is there now."
            )


def _manifests(group: _Group) -> list[tuple[DatasetFolder, ShardManifest]]:
    """The manifests of a group as they are now: kept in memory, those of a million shards would take gigabytes."""
    found = ((folder, folder.readable_manifest(name)) for folder, name in group)
    return [(folder, manifest) for folder, manifest in found if manifest is not None]


def _part_name(number: int) -> str:
    return f"part-{number:05d}"


def has_images(config: dict[str, Any]) -> bool:
    """Whether a dataset with this config.json contains the bytes of its images."""
    return config.get(COMPACTED, {}).get("images", True)


def _groups(sources: Sequence[DatasetFolder], max_bytes: int, images: bool) -> Iterator[list[JoinedShard]]:
    """Groups of at most 10,000 consecutive shards, each of which becomes one; one over the limits is a group itself."""
    max_rows = math.inf if images else _ROWS_WITHOUT_IMAGES
    group, size, rows = list[JoinedShard](), 0, 0
    for shard in joined_shards(sources):
        manifest = shard.manifest
        stored = sum(_stored_bytes(shard.folder, entry, images) for entry in manifest.files)
        is_full = len(group) == _SHARDS_IN_ONE or size + stored > max_bytes or rows + manifest.images > max_rows
        if group and is_full:
            yield group
            group, size, rows = [], 0, 0
        group.append(shard)
        size += stored
        rows += manifest.images
    yield group


def _stored_bytes(source: DatasetFolder, entry: FileEntry, images: bool) -> int:
    metadata = footer(source, entry)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(c.total_compressed_size for c in columns if images or not c.path_in_schema.startswith("images."))


def _merged_manifest(number: int, shards: _Shards, config_sha256: str) -> ShardManifest:
    group = [manifest for _, manifest in shards]
    gates = {manifest.gates_sha256 for manifest in group}
    scores = [manifest.scores_sha256.items() for manifest in group]
    return ShardManifest(
        shard=_part_name(number),
        config_sha256=config_sha256,
        input_fingerprint=sha256_json({"shards": [manifest.model_dump() for manifest in group]}),
        images=sum(manifest.images for manifest in group),
        accepted=sum(manifest.accepted for manifest in group),
        rejected=sum(manifest.rejected for manifest in group),
        unreadable=sum(manifest.unreadable for manifest in group),
        reasons={
            status: dict(sorted(sum((Counter(s.reasons.get(status, {})) for s in group), Counter[str]()).items()))
            for status in sorted(set(chain.from_iterable(manifest.reasons for manifest in group)))
        },
        fallbacks=dict(sorted(sum((Counter(manifest.fallbacks) for manifest in group), Counter[str]()).items())),
        output_tokens=sum(manifest.output_tokens for manifest in group),
        unused=dict(sorted(sum((Counter(manifest.unused) for manifest in group), Counter[str]()).items())),
        files=[],
        gates_sha256=gates.pop() if len(gates) == 1 else None,
        scores_sha256=dict(sorted(set(scores[0]).intersection(*scores))),
    )


@dataclass(frozen=True, slots=True)
class _Write:
    """Writes a shard from several of the sources."""

    staging: Staging
    images: bool

    def __call__(self, shard: tuple[ShardManifest, _Shards], advance: Advance) -> StagedShard:
        manifest, shards = shard

        def rows(part: str) -> Iterator[pa.Table]:
            of_part = [
                (folder, entry) for folder, s in shards for entry in s.files if entry.path.startswith(f"{part}/")
            ]
            return regrouped(table for folder, entry in of_part for table in _read(folder, entry, self.images))

        with self.staging.of_shard() as staging:
            return stage_tables(staging, manifest, rows("data"), rows("rejects"))


def _read(source: DatasetFolder, entry: FileEntry, images: bool) -> Iterator[pa.Table]:
    if images:
        yield from source.row_groups(entry)
        return
    field = DIALOGUES.field("images")
    with source.row_file(entry) as file:
        schema = schema_of(entry.path, SCHEMA_VERSION, file.parquet.schema_arrow)
    columns = [name for name in schema.names if name != field.name]
    for table in source.row_groups(entry, columns):
        without = pa.nulls(table.num_rows, field.type)
        yield table.add_column(schema.get_field_index(field.name), field, without)


def regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same rows in tables of 100 rows, or of fewer if 100 rows are too large for the Hub's viewer."""
    pending = list[pa.Table]()
    for table in tables:
        rows = pa.concat_tables([*pending, table])
        while rows.num_rows >= ROWS_PER_GROUP:
            yield from _halved(rows.slice(0, ROWS_PER_GROUP))
            rows = rows.slice(ROWS_PER_GROUP)
        pending = [rows]
    yield from chain.from_iterable(_halved(rows) for rows in pending if rows.num_rows)


def _halved(table: pa.Table) -> Iterator[pa.Table]:
    if table.nbytes <= BYTES_PER_GROUP or table.num_rows == 1:
        yield table
        return
    half = table.num_rows // 2
    yield from _halved(table.slice(0, half))
    yield from _halved(table.slice(half))
