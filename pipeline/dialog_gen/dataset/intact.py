"""Checks before a dataset is published, exported or rewritten: it must be complete and undamaged."""

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.errors import UsageError
from dialog_gen.core.parquet import open_parquet
from dialog_gen.dataset.errors import DamagedDatasetError, EmptyDatasetError
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.verify import damage
from dialog_gen.dataset.versions import is_known, schema_of


def intact_manifests(folder: DatasetFolder) -> list[ShardManifest]:
    """The manifests of all finished shards, in order, after a check that their files exist and have the right size.

    Raises DamagedDatasetError for a damaged shard, and EmptyDatasetError if there is no finished shard.
    """
    versions, found = folder.versions(), list[ShardManifest]()
    for name in folder.shards():
        manifest = folder.manifest(name)
        if manifest is None or manifest.shard != name:
            raise DamagedDatasetError(f"{folder.location}/shards/{name}.json is damaged")
        if manifest.config_sha256 not in versions:
            raise DamagedDatasetError(f"{folder.location}: shard {name} was made with another configuration")
        for entry in manifest.files:
            if (size := folder.size(entry.path)) != entry.bytes:
                state = "is missing" if size is None else f"has {size} bytes, {entry.bytes} are promised"
                raise DamagedDatasetError(f"{folder.location}/{entry.path} {state}")
        found.append(manifest)
    if not found:
        raise EmptyDatasetError(folder.location)
    return found


def check_bytes(folder: DatasetFolder, entry: FileEntry) -> None:
    """Reads a whole file. Raises DamagedDatasetError if its size or checksum differs from its manifest."""
    if problem := damage(folder, entry):
        raise DamagedDatasetError(f"{folder.location}: {problem}")


def footer(folder: DatasetFolder, entry: FileEntry) -> pq.FileMetaData:
    """The Parquet metadata of a file.

    Raises DamagedDatasetError if it cannot be read, and UsageError if its columns are not those of a version of the
    record. Additional columns are an error too: they would be lost silently.
    """
    try:
        with folder.open(entry.path) as file:
            metadata = open_parquet(file).metadata
    except (pa.ArrowException, OSError) as error:
        raise DamagedDatasetError(f"{folder.location}/{entry.path} cannot be read ({error})") from error
    schema, record = metadata.schema.to_arrow_schema(), schema_of(entry.path, SCHEMA_VERSION)
    if not is_known(entry.path, schema):
        found, wanted = ({f.name: f.type for f in s} for s in (schema, record))
        differing = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        raise UsageError(
            f"{folder.location}/{entry.path} was written by another version of dialog-gen: its columns differ from the "
            f"record in {', '.join(differing) or 'their order'}."
        )
    return metadata
