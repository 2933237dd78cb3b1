"""Merges a dataset's shards into larger ones for publishing: few files, with row groups that the Hub's viewer can show.

The result is a normal dataset folder. Each of its shards (`part-00000`, ...) consists of whole shards of the source. A
shard is written again if its source shards changed. So the same command resumes after an interruption, and updates the
result when the source has grown.
"""

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
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest, open_dataset, upgraded
from dialog_gen.dataset.intact import check_bytes, footer, intact_manifests
from dialog_gen.dataset.record import DIALOGUES, REJECTS
from dialog_gen.dataset.writer import ROWS_PER_GROUP, DatasetWriter, open_writer

COMPACTED = "compacted"
"""The key in config.json that only merged datasets have."""
_NOTES = ("run.json", "gates.json", "images.json")
# Limit for a shard without images. When its images are restored, at about 50 kB each, the shard takes about 500 MB,
# like other shards. It is also the largest amount of work that `rehydrate` repeats after an interruption.
_ROWS_WITHOUT_IMAGES = 10_000
# The Hub's viewer does not show row groups over 286 MiB.
_GROUP_BYTES = 200 << 20


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
            f"{self.out}: {self.images} images in {self.shards} shards of {self.bytes / 1e6:.0f} MB in all, "
            f"made of {self.source_shards}{skipped}"
        )


def compact(
    dataset: str | Path | DatasetFolder,
    out: str | Path,
    *,
    shard_mb: int = 500,
    without_images: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> CompactSummary:
    """Writes the rows of a dataset to `out`, a local folder or fsspec URL, in shards of about `shard_mb` MB.

    The order of rows does not change, and shards of the source are never divided. `without_images` leaves out the bytes
    of images but keeps their URLs and checksums; shards then have at most 10,000 rows. Only one row group is in memory
    at a time. Rows are written in the current version of the record, even if the source has an older one.

    Raises UsageError for a source with damaged shards, and for an `out` that contains something else, is inside the
    source or contains the source.
    """
    check_at_least("--shard-mb", shard_mb, 1)
    source = open_dataset(dataset)
    check_apart(source.location, str(out))
    return merge_shards(source, str(out), shard_mb=shard_mb, images=not without_images, on_progress=on_progress)


def merge_shards(
    source: DatasetFolder, out: str, *, shard_mb: int, images: bool, on_progress: OnProgress
) -> CompactSummary:
    """Does the work of `compact`, but without its checks: `out` may be inside the source.

    `shard_mb` is in 10^6 bytes; `images` is False to leave out the bytes of images.
    """
    config = source.config()
    images = images and has_images(config)
    groups = list(_groups(source, shard_mb * 10**6, images))
    source_shards = sum(map(len, groups))
    done = list[ShardManifest]()
    with open_writer(out, {**upgraded(config), COMPACTED: {"shard_mb": shard_mb, "images": images}}) as store:
        skipped = 0
        for number, group in enumerate(groups):
            wanted = _merged_manifest(f"part-{number:05d}", group, store.config_sha256)
            there = store.completed(wanted.shard, wanted.input_fingerprint)
            skipped += there is not None
            done.append(there or _write(store, wanted, source, group, images))
            on_progress("merging shards", sum(map(len, groups[: number + 1])), source_shards)
        stale = set(store.shards()) - {manifest.shard for manifest in done}
        for name in stale:
            store.drop(name)
        copy_notes(source, store, overwrite=skipped < len(done) or bool(stale))
    return CompactSummary(
        out=out,
        images=sum(manifest.images for manifest in done),
        shards=len(done),
        source_shards=source_shards,
        shards_already_done=skipped,
        bytes=sum(entry.bytes for manifest in done for entry in manifest.files),
    )


def has_images(config: dict[str, Any]) -> bool:
    """Whether a dataset with this config.json contains the bytes of its images."""
    return config.get(COMPACTED, {}).get("images", True)


def check_apart(source: str, out: str) -> None:
    """Raises UsageError if two dataset folders are the same or one is inside the other."""
    folders = [DatasetFolder(name) for name in (source, out)]
    here, there = (str(at.local_root.resolve()) if at.local_root else at.location for at in folders)
    if f"{there.rstrip('/')}/".startswith(f"{here.rstrip('/')}/") or here.startswith(f"{there.rstrip('/')}/"):
        raise UsageError(f"--out {out} and {source} lie in one another: choose another --out.")


def copy_notes(source: DatasetFolder, store: DatasetWriter, *, overwrite: bool) -> None:
    """Copies run.json, gates.json and images.json. Without `overwrite`, files that `store` already has are kept."""
    for name in _NOTES:
        if source.exists(name) and (overwrite or not store.exists(name)):
            part = store.tmp / name
            part.write_bytes(source.read(name))
            store.put(name, part)


def _groups(source: DatasetFolder, max_bytes: int, images: bool) -> Iterator[list[ShardManifest]]:
    """Groups of consecutive shards, each of which becomes one shard. A shard over the limits is a group of its own."""
    max_rows = math.inf if images else _ROWS_WITHOUT_IMAGES
    group, size, rows = list[ShardManifest](), 0, 0
    for manifest in intact_manifests(source):
        stored = sum(_stored_bytes(source, entry, images) for entry in manifest.files)
        if group and (size + stored > max_bytes or rows + manifest.images > max_rows):
            yield group
            group, size, rows = [], 0, 0
        group.append(manifest)
        size += stored
        rows += manifest.images
    yield group


def _stored_bytes(source: DatasetFolder, entry: FileEntry, images: bool) -> int:
    metadata = footer(source, entry)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(c.total_compressed_size for c in columns if images or not c.path_in_schema.startswith("images."))


def _merged_manifest(name: str, group: Sequence[ShardManifest], config_sha256: str) -> ShardManifest:
    gates = {manifest.gates_sha256 for manifest in group}
    return ShardManifest(
        shard=name,
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
        output_tokens=sum(manifest.output_tokens for manifest in group),
        files=[],
        gates_sha256=gates.pop() if len(gates) == 1 else None,
    )


def _write(
    store: DatasetWriter, manifest: ShardManifest, source: DatasetFolder, group: Sequence[ShardManifest], images: bool
) -> ShardManifest:
    def rows(part: str) -> Iterator[pa.Table]:
        entries = [entry for s in group for entry in s.files if entry.path.startswith(f"{part}/")]
        return regrouped(table for entry in entries for table in _read(source, entry, images))

    return store.write_shard(manifest, rows("data"), rows("rejects"))


def _read(source: DatasetFolder, entry: FileEntry, images: bool) -> Iterator[pa.Table]:
    check_bytes(source, entry)
    if images:
        yield from source.row_groups(entry)
        return
    field = DIALOGUES.field("images")
    schema = DIALOGUES if entry.path.startswith("data/") else REJECTS
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
    if table.nbytes <= _GROUP_BYTES or table.num_rows == 1:
        yield table
        return
    half = table.num_rows // 2
    yield from _halved(table.slice(0, half))
    yield from _halved(table.slice(half))
