"""What is shared must be whole: checks before a dataset folder is read for someone else."""

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest, sha256_json
from dialog_gen.dataset.record import DIALOGUES, REJECTS
from dialog_gen.dataset.verify import damage

_REMEDY = "`dialog-gen verify` tells more, the run's own command makes damaged shards anew."


def intact_manifests(folder: DatasetFolder) -> list[ShardManifest]:
    """The manifests of all finished shards, in order; their files are there and have the size that was promised.

    Raises UsageError for a damaged shard, and where there is none at all.
    """
    config_sha256, found = sha256_json(folder.config()), list[ShardManifest]()
    for name in folder.shards():
        manifest = folder.manifest(name)
        if manifest is None or manifest.shard != name:
            raise UsageError(f"{folder.location}/shards/{name}.json is damaged: {_REMEDY}")
        if manifest.config_sha256 != config_sha256:
            raise UsageError(f"{folder.location}: shard {name} was made with another configuration: {_REMEDY}")
        for entry in manifest.files:
            if (size := folder.size(entry.path)) != entry.bytes:
                state = "is missing" if size is None else f"has {size} bytes, {entry.bytes} are promised"
                raise UsageError(f"{folder.location}/{entry.path} {state}: {_REMEDY}")
        found.append(manifest)
    if not found:
        raise UsageError(f"{folder.location} has no finished shard yet: let `dialog-gen run` make some first.")
    return found


def check_bytes(folder: DatasetFolder, entry: FileEntry) -> None:
    """Raises UsageError unless a file has the checksum that its manifest promises; reads all of it."""
    if problem := damage(folder, entry):
        raise UsageError(f"{folder.location}: {problem}: {_REMEDY}")


def footer(folder: DatasetFolder, entry: FileEntry) -> pq.FileMetaData:
    """A file's own description. Raises UsageError where it cannot be read or its columns are not those of the record.

    More columns than the record has are refused, too: they would get lost in silence.
    """
    schema = DIALOGUES if entry.path.startswith("data/") else REJECTS
    try:
        with folder.open(entry.path) as file:
            metadata = pq.ParquetFile(file).metadata
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{folder.location}/{entry.path} cannot be read ({error}): {_REMEDY}") from error
    found, wanted = ({f.name: f.type for f in s} for s in (metadata.schema.to_arrow_schema(), schema))
    if list(found.items()) != list(wanted.items()):
        differing = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        raise UsageError(
            f"{folder.location}/{entry.path} was written by another version of dialog-gen: its columns differ from the "
            f"record in {', '.join(differing) or 'their order'}."
        )
    return metadata
