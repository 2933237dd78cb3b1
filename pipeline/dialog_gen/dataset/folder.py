"""Reads a dataset folder, which is on local disk or at an fsspec URL.

    OUT/config.json            the configuration that all rows were made with; another configuration is rejected
    OUT/data/SHARD.parquet     accepted dialogues
    OUT/rejects/SHARD.parquet  rows that could not be used, with the reason
    OUT/shards/SHARD.json      the shard's manifest: counts and checksums; written last, it marks the shard as complete
    OUT/README.md              which files are rows, for `datasets.load_dataset("OUT")` and the Hub's viewer
    OUT/run.json               a report of the last run
    OUT/gates.json             the quality gates that were applied, and what they found
    OUT/upgrade.json           exists only during an upgrade to the current version of the record
    OUT/engine.log             the output of the engine (local disk only)
    OUT/command.json           the command that made the dataset
    OUT/repair.json            exists only during a repair
    OUT/set-aside/TIME/        what a repair took out of the dataset; nothing reads it

Every JSON file but config.json, of which the manifests have the hash, has a checksum of its own (`core.sealed_json`).
A file that no manifest names is not part of the dataset. Rewritten rows go to SHARD.v2.parquet, and the next time back
to SHARD.parquet: the manifest names the valid file.
"""

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

import pyarrow as pa
from fsspec.core import url_to_fs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from dialog_gen.core.blocks import CheckedFile, DamagedFileError, Digests, digests
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.parallel import in_order
from dialog_gen.core.plain_problems import first_problem
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.errors import (
    BeingWrittenError,
    DamagedConfigError,
    DamagedDatasetError,
    NoDatasetError,
    UnreadableRowsError,
)
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.versions import RowFile

T = TypeVar("T")
R = TypeVar("R")
UPGRADE = "upgrade.json"
_REQUESTS = 32
"""Number of requests to an object store at a time."""
_checked_whole: set[tuple[str, str, str]] = set()
"""Location, path and SHA-256 of the files without checksums of blocks that this process has checked."""

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A number of things in a file from outside: it fits into a column of 64-bit integers."""


class FileEntry(BaseModel):
    """One Parquet file of a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(pattern=r"^(data|rejects)/[^/\x00]*\.parquet$")
    """Relative to the dataset folder."""
    rows: Count
    bytes: Count
    sha256: str
    block_crc32: str | None = None
    """Checksums with which the columns that are read are checked (`core.blocks.Digests`); older files have none."""

    def difference(self, found: Digests) -> str | None:
        """How a file with these digests differs from the promised one; None if it does not."""
        if found.bytes != self.bytes:
            return f"{self.path} has {found.bytes} bytes, {self.bytes} are promised"
        if found.sha256 != self.sha256 or self.block_crc32 not in (None, found.block_crc32):
            return f"{self.path} has another checksum than promised"
        return None


class ShardManifest(BaseModel):
    """The manifest of a completed shard: its counts, its files and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str = Field(pattern=r"^[^/\x00]+$")
    config_sha256: str
    input_fingerprint: str
    images: Count
    """Images read: accepted + rejected + unreadable."""
    accepted: Count
    rejected: Count
    unreadable: Count
    reasons: dict[str, dict[str, Count]]
    """Number of images by status ("rejected" or "unreadable") and reason."""
    output_tokens: Count
    files: list[FileEntry]
    """There is no entry for a file that would have no rows."""
    unused: dict[str, Count] = Field(default={})
    """Reason -> number of things in the input that were not used for any row, such as a second image of a sample."""
    gates_sha256: str | None = None
    """Hash of the gates' settings and of what they learned from the whole dataset; None if no gate was applied."""
    scores_sha256: dict[str, str] = Field(default={})
    """Gate -> hash of what its scores depend on except the rows, for the applied gates that run a model."""
    fallbacks: dict[str, Count] = Field(default={})
    """Fallback protocol -> number of the accepted images whose dialogue it made."""

    @model_serializer(mode="wrap")
    def _without_empty_fallbacks(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Other shards keep the manifest, and its hash, that they had before there were fallbacks."""
        content = serialize(self)
        if not content.get("fallbacks"):
            content.pop("fallbacks", None)
        return content

    @property
    def data(self) -> FileEntry | None:
        """The file of accepted rows; None if there are none."""
        return next((entry for entry in self.files if entry.path.startswith("data/")), None)


class Upgrade(BaseModel):
    """The content of upgrade.json: version and configuration hash of the shards that are not upgraded yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    config_sha256: str


class DatasetFolder:
    """Reads a dataset folder. `location` is a local path or an fsspec URL."""

    def __init__(self, location: str) -> None:
        """Raises UsageError if the location is empty or is a URL that cannot be opened."""
        if not location.strip():
            raise UsageError("the name of the dataset folder is empty.")
        try:
            fs, root = url_to_fs(location, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(f"cannot open {location}: {error}") from error
        self.location, self.fs, self.root = location, fs, str(root).rstrip("/")
        self.local_root = Path(self.root) if "file" in _protocols(fs) else None

    @classmethod
    def existing(cls, location: str) -> "DatasetFolder":
        """The folder of an existing dataset.

        Raises NoDatasetError if there is no dataset, and UsageError if its configuration cannot be read.
        """
        folder = cls(location)
        if not folder.exists("config.json"):
            if folder.shards():
                raise DamagedConfigError(f"{location} has shards but no config.json.")
            raise NoDatasetError(location, exists=folder.exists(""))
        folder.config()
        return folder

    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises DamagedConfigError if it is damaged, and UsageError if it has a later version of the record.
        """
        try:
            found = parse_json(self.read("config.json"))
        except (ValueError, IsADirectoryError) as error:
            raise DamagedConfigError(f"{self.location}/config.json is damaged: {error}.") from None
        if not isinstance(found, dict):
            raise DamagedConfigError(f"{self.location}/config.json is damaged: it contains no object.")
        if version_of(found) not in range(1, SCHEMA_VERSION + 1):
            raise UsageError(
                f"{self.location} has version {version_of(found)} of the record, this dialog-gen knows versions up "
                f"to {SCHEMA_VERSION}: install a newer one."
            )
        return found

    def upgrade(self) -> Upgrade | None:
        """The content of upgrade.json; None if no upgrade is under way. Raises UsageError if the file is damaged."""
        try:
            return Upgrade.model_validate(unsealed(self.read(UPGRADE)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamagedConfigError(f"{self.location}/{UPGRADE} is damaged: {first_problem(error)}.") from None
        except IsADirectoryError:
            raise DamagedConfigError(f"{self.location}/{UPGRADE} is damaged: it is a folder.") from None

    def shared(self) -> list[Path]:
        """The files by which another machine recognises this folder; none for one at a URL."""
        return [] if self.local_root is None else [self.local_root / "config.json"]

    def versions(self) -> dict[str, int]:
        """Maps the shards' `config_sha256` to their version of the record: one entry, or two during an upgrade.

        Raises UsageError if the configuration cannot be read.
        """
        config, upgrade = self.config(), self.upgrade()
        earlier = {upgrade.config_sha256: upgrade.schema_version} if upgrade else {}
        return {**earlier, sha256_json(config): version_of(config)}

    def is_current(self) -> bool:
        """Whether all shards have the current version of the record."""
        return set(self.versions().values()) == {SCHEMA_VERSION}

    def manifest(self, shard: str) -> ShardManifest | None:
        """The manifest of a completed shard; None if it is missing or damaged."""
        try:
            return self.readable_manifest(shard)
        except DamagedDatasetError:
            return None

    def readable_manifest(self, shard: str) -> ShardManifest | None:
        """The manifest of a completed shard; None if there is none. Raises DamagedDatasetError if it is damaged."""
        name = f"shards/{shard}.json"
        try:
            return ShardManifest.model_validate(unsealed(self.read(name)))
        except FileNotFoundError:
            return None
        except (ValueError, OSError):
            raise DamagedDatasetError(f"{self.location}/{name} is damaged") from None

    def shards(self) -> list[str]:
        """Names of the shards that have a manifest file, sorted."""
        return sorted(name.removesuffix(".json") for name in self.names("shards") if name.endswith(".json"))

    def manifests(self) -> Iterator[ShardManifest]:
        """The manifests of all finished shards, sorted by shard. Raises DamagedDatasetError for a damaged one."""
        names = self.shards()
        for name, manifest in zip(names, self.each(self.readable_manifest, names), strict=True):
            if manifest is None:  # a run is making the shard anew
                continue
            if manifest.shard != name:
                raise DamagedDatasetError(f"{self.location}/shards/{name}.json is the manifest of {manifest.shard}")
            yield manifest

    @property
    def requests(self) -> int:
        """The number of requests to make at a time: many to an object store, which takes long to answer."""
        return _REQUESTS if self.local_root is None else 1

    def each(self, read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yields `read(item)` for each item, in order; at a URL, many calls are made at a time, in threads."""
        return in_order(read, items, threads=self.requests)

    def rows(self, columns: "Sequence[str] | None" = None, *, part: str = "data") -> Iterator[dict[str, Any]]:
        """The rows of all finished shards, in order, with the given columns or with all.

        `part` is "data" for the accepted rows or "rejects" for the others. Rows of older versions are read as rows of
        the current version. What is read is checked, not only opened: raises UnreadableRowsError if a file is missing
        or damaged, and DamagedDatasetError if a manifest is.
        """
        for table in self.tables(columns, part=part):
            yield from table.to_pylist()

    def tables(self, columns: "Sequence[str] | None" = None, *, part: str = "data") -> Iterator[pa.Table]:
        """The same rows as `rows`, as tables of about a hundred rows."""
        for manifest in self.manifests():
            for entry in manifest.files:
                if entry.path.startswith(f"{part}/"):
                    yield from self.row_groups(entry, columns)

    def row_groups(self, entry: FileEntry, columns: "Sequence[str] | None" = None) -> Iterator[pa.Table]:
        """The rows of one file, one table per row group. Raises UnreadableRowsError if it is missing or damaged.

        A file that is rewritten meanwhile has the same rows, in the same row groups: the rest is read from the new one.
        """
        done = 0
        while True:
            try:
                with self.row_file(entry) as file:
                    for number in range(done, file.parquet.num_row_groups):
                        yield file.row_group(number, columns)
                        done += 1
                return
            except (UnreadableRowsError, BeingWrittenError) as error:
                newer = self.replacement(entry)
                if newer is None:
                    raise
                if newer.rows != entry.rows:
                    raise BeingWrittenError(self.location, f", which made {entry.path} anew") from error
                entry = newer

    @contextmanager
    def row_file(self, entry: FileEntry) -> Generator[RowFile]:
        """Opens one Parquet file, or the one that replaces it by now. Every block that is read is checked.

        Raises UnreadableRowsError if the file is missing or damaged, also inside the block, and BeingWrittenError if a
        run is making the shard anew. A file without checksums of its blocks is read completely, once per process,
        before it is opened.
        """
        try:
            with ExitStack() as stack:
                yield self._open_rows(entry, stack)
        except (pa.ArrowException, OSError) as error:
            if self.owner(entry.path) != entry:  # gone, or of other rows by now
                raise BeingWrittenError(self.location, f", which makes {entry.path} anew") from error
            raise UnreadableRowsError(self.location, entry.path, error) from error

    def _open_rows(self, entry: FileEntry, stack: ExitStack) -> RowFile:
        while True:
            try:
                if entry.block_crc32 is None:
                    self._check_whole(entry)
                file = stack.enter_context(self.open(entry.path))
                if entry.block_crc32 is not None:
                    file = CheckedFile(file, entry.bytes, entry.block_crc32)
                return RowFile(file)
            except (pa.ArrowException, OSError):
                newer = self.replacement(entry)
                if newer is None:
                    raise
                entry = newer

    def _check_whole(self, entry: FileEntry) -> None:
        key = (self.location, entry.path, entry.sha256)
        if key not in _checked_whole:
            if problem := self.damage(entry):
                raise DamagedFileError(problem)
            _checked_whole.add(key)

    def damage(self, entry: FileEntry) -> str | None:
        """Reads a whole file; says how it differs from the size and checksums in its manifest, None if it does not."""
        try:
            with self.open(entry.path) as file:
                return entry.difference(digests(file))
        except FileNotFoundError:
            return f"{entry.path} is missing"
        except OSError as error:
            return f"{entry.path} cannot be read: {error.strerror or error}"

    def replacement(self, entry: FileEntry) -> FileEntry | None:
        """What its shard's manifest has now in the place of a file; None if that is the same file, or nothing.

        A gate pass and an upgrade replace files: a reader that has an older manifest finds them gone, or changed.
        """
        newer = self.owner(entry.path) or self.owner(other_name(entry.path))
        return None if newer == entry else newer

    def owner(self, path: str) -> FileEntry | None:
        """The entry of a file in the manifest of its shard; None if the manifest does not name it."""
        for shard in _shards_of(path):
            if manifest := self.manifest(shard):
                for entry in manifest.files:
                    if entry.path == path:
                        return entry
        return None

    def list(self, folder: str) -> "list[str]":
        """The names in a subfolder, sorted; empty if it does not exist."""
        return sorted(self.names(folder))

    def names(self, folder: str) -> Iterator[str]:
        """The names in a subfolder, in any order; none if it does not exist."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if self.local_root is None:
                for path in self.fs.ls(self._path(folder), detail=False):
                    if str(path).rstrip("/") != self._path(folder):  # a file lists itself
                        yield str(path).rsplit("/", 1)[-1]
            else:
                # One by one: there may be millions.
                with os.scandir(self._path(folder)) as found:
                    for entry in found:
                        yield entry.name

    def age_s(self, name: str, now: float) -> float:
        """Seconds since a file of an object store was written; infinity for a local file, which locks protect."""
        if self.local_root is not None:
            return math.inf
        try:
            return now - self.fs.modified(self._path(name)).timestamp()
        except (OSError, NotImplementedError, AttributeError):
            return math.inf

    def exists(self, name: str) -> bool:
        """Whether a file or subfolder exists."""
        return bool(self.fs.exists(self._path(name)))

    def is_file(self, name: str) -> bool:
        """Whether there is a file, not a folder."""
        return bool(self.fs.isfile(self._path(name)))

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if it does not exist."""
        try:
            # On local disk, fsspec takes several times as long as the system.
            path = self._path(name)
            return self.fs.info(path)["size"] if self.local_root is None else Path(path).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError if it does not exist."""
        path = self._path(name)
        return self.fs.cat_file(path) if self.local_root is None else Path(path).read_bytes()

    def open(self, name: str) -> Any:
        """Opens a file for reading, in binary mode."""
        return self.fs.open(self._path(name), "rb")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")


def is_local(location: str) -> bool:
    """Whether a dataset folder is on local disk. Raises UsageError if the location is empty or cannot be opened."""
    return DatasetFolder(location).local_root is not None


def open_dataset(dataset: "str | Path | DatasetFolder") -> DatasetFolder:
    """Opens the dataset at a local path or an fsspec URL for reading; a `DatasetFolder` is returned unchanged.

    Raises NoDatasetError if there is no dataset, and UsageError if its configuration cannot be read.
    """
    return dataset if isinstance(dataset, DatasetFolder) else DatasetFolder.existing(str(dataset))


def version_of(config: Mapping[str, Any]) -> int:
    """The version of the record in a configuration; 0 if the value is not a number."""
    version = config.get("schema_version", SCHEMA_VERSION)
    return version if isinstance(version, int) else 0


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the configuration with the current version of the record."""
    return {**config, **({"schema_version": SCHEMA_VERSION} if "schema_version" in config else {})}


def other_name(path: str) -> str:
    """The name for the rewritten rows of a file: a file that a manifest names is never overwritten."""
    stem = path.removesuffix(".parquet")
    return f"{stem.removesuffix('.v2')}.parquet" if stem.endswith(".v2") else f"{stem}.v2.parquet"


def _shards_of(path: str) -> list[str]:
    """The shards that a file can belong to, by its name."""
    stem = PurePosixPath(path).stem
    return list(dict.fromkeys((stem, stem.removesuffix(".v2"))))


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
