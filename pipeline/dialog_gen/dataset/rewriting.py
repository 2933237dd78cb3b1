"""Writes shards from tables into temporary files: finished shards with changed rows, and new shards.

A worker calls these functions, and the process that has opened the dataset for writing commits what they stage:
`DatasetWriter.replace` commits changed rows, `DatasetWriter.commit` a new shard.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest, other_name
from dialog_gen.dataset.intact import footer
from dialog_gen.dataset.shard_writer import Part, StagedShard, Staging, stage, writing_shards


def stage_changed(
    folder: DatasetFolder,
    staging: Staging,
    manifest: ShardManifest,
    change: Callable[[pa.Table], pa.Table],
    *,
    parts: Sequence[str] = ("data",),
    **update: Any,
) -> StagedShard:
    """Rewrites rows of a finished shard, one row group at a time.

    `change` takes each row group of `parts` ("data", "rejects") in order, as rows of the current version, and returns
    the same number of rows. `update` contains the fields of the manifest to change. The staged files are only the
    changed ones. Raises UnreadableRowsError if a file is missing or damaged, so that damaged rows never get a new
    checksum; UsageError if the columns are not those of the record.
    """
    changed = [entry for entry in manifest.files if entry.path.partition("/")[0] in parts]
    staged = stage(staging, manifest, [_changed(folder, staging, manifest.shard, entry, change) for entry in changed])
    by_path = {other_name(entry.path): entry for entry in staged.manifest.files}
    for old in changed:
        if by_path[old.path].rows != old.rows:
            raise ValueError(f"{manifest.shard}: {by_path[old.path].rows} of {old.rows} rows")
    files: list[FileEntry] = [by_path.get(entry.path, entry) for entry in manifest.files]
    return StagedShard(
        manifest=manifest.model_copy(update={"files": files, **update}), files=staged.files, uploaded=staged.uploaded
    )


def _changed(
    folder: DatasetFolder, staging: Staging, shard: str, old: FileEntry, change: Callable[[pa.Table], pa.Table]
) -> Part:
    footer(folder, old)
    part = Part(staging.folder, old.path.partition("/")[0], shard, target=other_name(old.path))
    for table in folder.row_groups(old):
        changed = change(table)
        with writing_shards(staging.location):
            part.write(changed)
    return part


def stage_tables(
    staging: Staging, manifest: ShardManifest, data: Iterable[pa.Table], rejects: Iterable[pa.Table]
) -> StagedShard:
    """Writes a new shard from iterables of tables, one row group per table.

    `manifest` is complete except for its files. Raises ValueError if the number of rows differs from its counts.
    """
    parts = [Part(staging.folder, name, manifest.shard) for name in ("data", "rejects")]
    with writing_shards(staging.location):
        for part, tables in zip(parts, (data, rejects), strict=True):
            for table in tables:
                part.write(table)
    rows = [part.rows for part in parts]
    if rows != [manifest.accepted, manifest.rejected + manifest.unreadable]:
        raise ValueError(f"{manifest.shard}: the numbers of rows {rows} differ from the manifest's counts")
    return stage(staging, manifest, parts)
