"""Copies shards from one dataset folder into another byte by byte; every byte is checked on the way."""

from contextlib import suppress
from pathlib import Path

from dialog_gen.core.blocks import digests
from dialog_gen.core.files import fsync
from dialog_gen.dataset.errors import BeingWrittenError, UnreadableRowsError
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest
from dialog_gen.dataset.shard_writer import StagedShard, writing_shards
from dialog_gen.dataset.writer import DatasetWriter


def copy_shard(store: DatasetWriter, manifest: ShardManifest, source: DatasetFolder) -> ShardManifest:
    """Adds a shard with the files of `manifest`, which are in `source`, under the shard's name; returns its manifest.

    The shard is complete or does not appear. Raises UnreadableRowsError if a file is missing or damaged,
    BeingWrittenError if a process replaces it meanwhile, and DialogGenError if the copy cannot be written.
    """
    files, entries = dict[str, Path](), list[FileEntry]()
    for entry in manifest.files:
        part = entry.path.partition("/")[0]
        copied = entry.model_copy(update={"path": f"{part}/{manifest.shard}.parquet"})
        files[copied.path] = store.tmp / f"{part}-{manifest.shard}.parquet"
        _copy(source, entry, files[copied.path], store.location)
        entries.append(copied)
    return store.commit(StagedShard(manifest=manifest.model_copy(update={"files": entries}), files=files))


def _copy(source: DatasetFolder, entry: FileEntry, path: Path, location: str) -> None:
    with writing_shards(location):
        target = path.open("wb")

    def write(chunk: bytes) -> None:
        with writing_shards(location):
            target.write(chunk)

    try:
        with target, source.open(entry.path) as file:
            problem = entry.difference(digests(file, write))
            if problem is None:
                with writing_shards(location):
                    target.flush()
                    fsync(path)
                return
    except OSError as error:
        problem = str(error.strerror or error)
    with suppress(OSError):
        path.unlink()
    if source.owner(entry.path) != entry:
        raise BeingWrittenError(source.location, f", which makes {entry.path} anew")
    raise UnreadableRowsError(source.location, entry.path, problem)
