"""Reads a dataset folder, which is on local disk or at an fsspec URL.

    OUT/config.json            the configuration that all rows were made with; another configuration is rejected
    OUT/data/SHARD.parquet     accepted dialogues
    OUT/rejects/SHARD.parquet  rows that could not be used, with the reason
    OUT/shards/SHARD.json      the shard's manifest: counts and checksums; written last, it marks the shard as complete
    OUT/run.json               a report of the last run
    OUT/gates.json             the quality gates that were applied, and what they found
    OUT/upgrade.json           exists only during an upgrade to the current version of the record
    OUT/engine.log             the output of the engine (local disk only)

A file that no manifest names is not part of the dataset. Rewritten rows go to SHARD.v2.parquet, and the next time back
to SHARD.parquet: the manifest names the valid file.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.core import url_to_fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.dataset.errors import NoDatasetError, UnreadableRowsError
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.versions import RowFile

UPGRADE = "upgrade.json"


class FileEntry(BaseModel):
    """One Parquet file of a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(pattern=r"^(data|rejects)/[^/]*\.parquet$")
    """Relative to the dataset folder."""
    rows: int
    bytes: int
    sha256: str


class ShardManifest(BaseModel):
    """The manifest of a completed shard: its counts, its files and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str = Field(pattern=r"^[^/]+$")
    config_sha256: str
    input_fingerprint: str
    images: int
    """Images read: accepted + rejected + unreadable."""
    accepted: int
    rejected: int
    unreadable: int
    reasons: dict[str, dict[str, int]]
    """Number of images by status ("rejected" or "unreadable") and reason."""
    output_tokens: int
    files: list[FileEntry]
    """There is no entry for a file that would have no rows."""
    gates_sha256: str | None = None
    """Hash of the gates' settings and of what they learned from the whole dataset; None if no gate was applied."""

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
            raise NoDatasetError(location, exists=folder.exists(""))
        folder.config()
        return folder

    def config(self) -> dict[str, Any]:
        """The content of config.json. Raises UsageError if it is damaged or has a later version of the record."""
        try:
            found = json.loads(self.read("config.json"))
        except ValueError as error:
            raise UsageError(f"{self.location}/config.json is damaged: {error}.") from None
        if not isinstance(found, dict):
            raise UsageError(f"{self.location}/config.json is damaged: it contains no object.")
        if version_of(found) not in range(1, SCHEMA_VERSION + 1):
            raise UsageError(
                f"{self.location} has version {version_of(found)} of the record, this dialog-gen knows versions up "
                f"to {SCHEMA_VERSION}: install a newer one."
            )
        return found

    def upgrade(self) -> Upgrade | None:
        """The content of upgrade.json; None if no upgrade is under way. Raises UsageError if the file is damaged."""
        try:
            return Upgrade.model_validate_json(self.read(UPGRADE))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise UsageError(f"{self.location}/{UPGRADE} is damaged: {error.errors()[0]['msg']}.") from None

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
            return ShardManifest.model_validate_json(self.read(f"shards/{shard}.json"))
        except (FileNotFoundError, ValidationError):
            return None

    def shards(self) -> list[str]:
        """Names of the shards that have a manifest file, sorted."""
        return [name.removesuffix(".json") for name in self.list("shards") if name.endswith(".json")]

    def manifests(self) -> Iterator[ShardManifest]:
        """All readable manifests, sorted by shard."""
        for name in self.shards():
            if manifest := self.manifest(name):
                yield manifest

    def rows(self, columns: "Sequence[str] | None" = None, *, part: str = "data") -> Iterator[dict[str, Any]]:
        """The rows of all finished shards, in order, with the given columns or with all.

        `part` is "data" for the accepted rows or "rejects" for the others. Rows of older versions are read as rows of
        the current version. Raises UnreadableRowsError if a file is missing or damaged.
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
        """The rows of one file, one table per row group. Raises UnreadableRowsError if it is missing or damaged."""
        with self.row_file(entry.path) as file:
            yield from file.row_groups(columns)

    @contextmanager
    def row_file(self, path: str) -> Generator[RowFile]:
        """Opens one Parquet file. Raises UnreadableRowsError if it is missing or damaged, also inside the block."""
        try:
            with self.open(path) as file:
                yield RowFile(file)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableRowsError(self.location, path, error) from error

    def list(self, folder: str) -> "list[str]":
        """The names in a subfolder, sorted; empty if it does not exist."""
        try:
            return sorted(str(path).rsplit("/", 1)[-1] for path in self.fs.ls(self._path(folder), detail=False))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        """Whether a file or subfolder exists."""
        return bool(self.fs.exists(self._path(name)))

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if it does not exist."""
        try:
            return self.fs.info(self._path(name))["size"]
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError if it does not exist."""
        return self.fs.cat_file(self._path(name))

    def open(self, name: str) -> Any:
        """Opens a file for reading, in binary mode."""
        return self.fs.open(self._path(name), "rb")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")


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


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
