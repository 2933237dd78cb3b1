"""Checks before a dataset is published, exported or rewritten: it must be complete and undamaged."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pyarrow.parquet as pq

from dialog_gen.core.duplicates import DuplicateFinder
from dialog_gen.core.errors import UsageError
from dialog_gen.core.parallel import in_order
from dialog_gen.core.plural import count_of
from dialog_gen.dataset.errors import DamagedDatasetError, EmptyDatasetError, RepeatedIdError
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.verify import ids_among
from dialog_gen.dataset.versions import is_known, schema_of

_CONFIRMED = 1000
"""Number of repeated ids that are looked up."""


def intact_manifests(folder: DatasetFolder) -> Iterable[ShardManifest]:
    """The manifests of all finished shards, in order, after a check that their files exist and have the right size.

    They can be iterated several times, and are read each time: the checksums of 100 TB would take gigabytes of memory.
    Raises DamagedDatasetError for a damaged shard, also while it is iterated, and EmptyDatasetError if there is no
    finished shard.
    """
    found = IntactManifests(folder)
    if not sum(1 for _ in found):
        raise EmptyDatasetError(folder.location)
    return found


class IntactManifests(Iterable[ShardManifest]):
    """The manifests of the shards that are finished now, each read and checked when it is asked for."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder, self._names = folder, folder.shards()

    def __iter__(self) -> Iterator[ShardManifest]:
        """Raises DamagedDatasetError for a damaged shard."""
        read = self._folder.each(intact_reader(self._folder), self._names)
        return (manifest for manifest in read if manifest is not None)


def intact_reader(folder: DatasetFolder) -> Callable[[str], ShardManifest | None]:
    """A function that reads the manifest of a shard, and checks that its files exist and have the right size.

    It returns None if a run is making the shard anew, and raises DamagedDatasetError for a damaged shard.
    """
    versions = folder.versions()

    def read(name: str) -> ShardManifest | None:
        nonlocal versions
        manifest = folder.readable_manifest(name)
        while problem := _problem(folder, name, manifest, versions):
            versions_now, now = versions | folder.versions(), folder.readable_manifest(name)
            if (versions_now, now) == (versions, manifest):
                raise DamagedDatasetError(problem)
            # Another process has written it meanwhile.
            versions, manifest = versions_now, now
        return manifest

    return read


def check_unique_ids(folders: Sequence[DatasetFolder], shards: Iterable[tuple[DatasetFolder, ShardManifest]]) -> None:
    """Reads the ids of these shards of the folders. Raises RepeatedIdError if one is in more than one row.

    Raises UnreadableRowsError if a file is missing or damaged.
    """

    def ids_of(shard: tuple[DatasetFolder, ShardManifest]) -> list[str]:
        folder, manifest = shard
        return [image_id for entry in manifest.files for image_id in _ids_of_file(folder, entry)]

    threads = max(folder.requests for folder in folders)
    with DuplicateFinder() as ids:
        for found in in_order(ids_of, shards, threads=threads):
            ids.add(found)
        refuse_repeated_ids(folders, ids)


def _ids_of_file(folder: DatasetFolder, entry: FileEntry) -> Iterator[str]:
    for table in folder.row_groups(entry, ["image_id"]):
        yield from table.column(0).to_pylist()


def refuse_repeated_ids(folders: Sequence[DatasetFolder], ids: DuplicateFinder) -> None:
    """Raises RepeatedIdError if one of these ids stands in more than one row of the datasets."""
    # Two copies of one dataset have all ids in common: a few of them are enough.
    suspects = ids.suspects(_CONFIRMED)
    found = dict[str, Counter[str]]()
    for folder in folders if suspects else ():
        for image_id, times in ids_among(folder, suspects).items():
            found.setdefault(image_id, Counter())[folder.location] = times
    repeated = sorted(image_id for image_id, places in found.items() if places.total() > 1)
    if not repeated:
        return
    at_least = "at least " if len(suspects) == _CONFIRMED else ""
    more = f" (and {at_least}{count_of(len(repeated) - 1, 'other')})" if len(repeated) > 1 else ""
    places = list(found[repeated[0]])
    if len(places) == 1:
        raise RepeatedIdError(f"{places[0]}: image_id {repeated[0]!r}{more} stands in more than one row")
    raise UsageError(
        f"image_id {repeated[0]!r}{more} stands in {' and in '.join(places[:2])}: ids must be unique in a dataset. "
        "Leave one of them out, or make one anew with other ids (`dialog-gen run --prefix-ids` for Parquet files)."
    )


def _problem(
    folder: DatasetFolder, name: str, manifest: ShardManifest | None, versions: Mapping[str, int]
) -> str | None:
    if manifest is None:  # a run is making the shard anew
        return None
    if manifest.shard != name:
        return f"{folder.location}/shards/{name}.json is damaged"
    if manifest.config_sha256 not in versions:
        return f"{folder.location}: shard {name} was made with another configuration"
    for entry in manifest.files:
        if (size := folder.size(entry.path)) != entry.bytes:
            state = "is missing" if size is None else f"has {size} bytes, {entry.bytes} are promised"
            return f"{folder.location}/{entry.path} {state}"
    return None


def footer(folder: DatasetFolder, entry: FileEntry) -> pq.FileMetaData:
    """The Parquet metadata of a file.

    Raises UnreadableRowsError if it cannot be read, and UsageError if its columns are not those of a version of the
    record. Additional columns are an error too: they would be lost silently.
    """
    with folder.row_file(entry) as file:
        metadata = file.parquet.metadata
    schema, record = metadata.schema.to_arrow_schema(), schema_of(entry.path, SCHEMA_VERSION)
    if not is_known(entry.path, schema):
        found, wanted = ({f.name: f.type for f in s} for s in (schema, record))
        differing = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        raise UsageError(
            f"{folder.location}/{entry.path} was written by another version of dialog-gen: its columns differ from the "
            f"record in {', '.join(differing) or 'their order'}."
        )
    return metadata
