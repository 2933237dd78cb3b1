"""Writes shards into a dataset folder, each exactly once.

A Parquet file is written to a temporary name (in OUT/.tmp on local disk, otherwise in the system's temporary folder),
fsynced, checksummed, and renamed or uploaded. The manifest is written last: a file that no manifest names is not part
of the dataset and is written again.
"""

import json
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import fsync, put_file
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.read_ahead import ReadAhead
from dialog_gen.core.sealed_json import sealed
from dialog_gen.dataset.command import COMMAND, Command, recorded_command, updated
from dialog_gen.dataset.errors import DamagedConfigError, OlderVersionError, OtherConfigError, differing_keys
from dialog_gen.dataset.folder import DatasetFolder, ShardManifest, other_name, upgraded, version_of
from dialog_gen.dataset.locks import TMP, Claims, lock_exclusively, lock_shared, membership_lock
from dialog_gen.dataset.readme import README, described, readme_of
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.rewriting import stage_changed, stage_tables
from dialog_gen.dataset.shard_writer import StagedShard, Staging, WorkUnit, writing_shards


class DatasetWriter(DatasetFolder):
    """Writes a dataset folder. `open_writer` locks the folder and returns one."""

    def __init__(self, location: str, config: Mapping[str, Any], tmp: Path, claims: Claims | None = None) -> None:
        """`tmp` is a folder for temporary files. `claims` is given if there are several writers."""
        super().__init__(location)
        self.config_sha256 = sha256_json(config)
        self.tmp = tmp
        self._claims = claims
        self._ahead: ReadAhead[tuple[ShardManifest | None, bool]] | None = None
        self._changed = set[str]()
        """Shards that this writer changed: what was read ahead may be older."""
        self._describing = threading.Lock()
        self._described = frozenset[str]()
        """The folders that README.md is known to tell about."""

    def is_complete(self, shard: WorkUnit) -> bool:
        """Whether the shard exists, made from the same input. More rows than the unit has are fine: they are kept."""
        return self.finished(shard) is not None

    def finished(self, shard: WorkUnit) -> ShardManifest | None:
        """The manifest of a shard that is complete (`is_complete`); None if it is not."""
        found = self.completed(shard.name, shard.fingerprint)
        return found if found is not None and found.images >= shard.count else None

    def completed(self, shard: str, fingerprint: str) -> ShardManifest | None:
        """The manifest of a shard; None if the input or the configuration is another one, or a file is missing."""
        found, is_whole = self._stored(shard)
        if found is None or (found.config_sha256, found.input_fingerprint) != (self.config_sha256, fingerprint):
            return None
        return found if is_whole else None

    def _stored(self, shard: str) -> tuple[ShardManifest | None, bool]:
        """The manifest of a shard, and whether its files are there. At a URL, it is read before it is asked for."""
        if self.local_root is not None or shard in self._changed:
            return self._read_stored(shard)
        if self._ahead is None:
            self._ahead = ReadAhead(self.shards(), self._read_stored, threads=self.requests)
        return self._ahead.get(shard) if shard in self._ahead else (None, False)

    def _read_stored(self, shard: str) -> tuple[ShardManifest | None, bool]:
        found = self.manifest(shard)
        return found, found is not None and all(self.size(entry.path) == entry.bytes for entry in found.files)

    def update_unused(self, found: ShardManifest, unused: Mapping[str, int]) -> None:
        """Brings the count of what is not used in a manifest up to date; rewrites the manifest only."""
        if found.unused != unused:
            found = found.model_copy(update={"unused": dict(unused)})
            self.put_json(f"shards/{found.shard}.json", found.model_dump())

    def claim(self, shard: WorkUnit) -> bool:
        """Claims a shard. Returns False if the shard is complete or if another writer is making it.

        Other writers do not make a claimed shard until it is committed or this writer ends.
        """
        if self._claims is None:
            return not self.is_complete(shard)
        with writing_shards(self.location):
            if not self._claims.take(shard.name):
                return False
        # Another writer may have completed it just before the claim.
        if self.is_complete(shard):
            self._claims.release(shard.name)
            return False
        return True

    def reader(self) -> DatasetFolder:
        """The same folder for reading; plain data, which can be sent to another process."""
        return DatasetFolder(self.location)

    def staging(self, log_name: str = "engine", *, apart: bool = False) -> Staging:
        """Where the files of shards are put before they are committed; removed when the writer is closed."""
        return Staging(
            location=self.location,
            config_sha256=self.config_sha256,
            folder=self.tmp,
            logs=self.local_root or self.tmp,
            log_name=log_name,
            apart=apart,
        )

    @contextmanager
    def alone(self) -> Generator[None]:
        """Only one of several writers is in such a block at a time; on local disk."""
        with ExitStack() as stack:
            if self._claims is not None:
                with writing_shards(self.location):
                    stack.enter_context(membership_lock(self.tmp.parent))
            yield

    def put(self, name: str, file: Path) -> None:
        """Moves (or uploads) a finished local file into the dataset folder as `name`, atomically."""
        self._note_change(name)
        with writing_shards(self.location):
            if self.local_root is None:
                self.fs.put_file(str(file), self._path(name))
                file.unlink()
            else:
                put_file(file, self.local_root / name)

    def _note_change(self, name: str) -> None:
        if self.local_root is None and name.startswith("shards/"):
            self._changed.add(name.removeprefix("shards/").removesuffix(".json"))

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a small JSON file with a checksum of its own (`core.sealed_json`), atomically."""
        self._put_plain(name, sealed(value))

    def put_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, atomically. The shards' manifests have its hash."""
        self._put_plain("config.json", config)

    def _put_plain(self, name: str, value: Mapping[str, Any]) -> None:
        self.put_bytes(name, f"{json.dumps(value, indent=2)}\n".encode())

    def put_bytes(self, name: str, content: bytes) -> None:
        """Writes a small file, atomically."""
        part = self.tmp / name.replace("/", "-")
        with writing_shards(self.location):
            part.write_bytes(content)
            fsync(part)
        self.put(name, part)

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        self._note_change(name)
        with writing_shards(self.location), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def record_command(self, made_by: Command) -> None:
        """Writes command.json if it changes."""
        before = recorded_command(self)
        if (now := updated(before, made_by)) != before:
            self.put_json(COMMAND, now.model_dump())

    def record_gates(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings of the applied gates to command.json, if there is one."""
        before = recorded_command(self)
        if before is not None and before.gates != settings:
            self.put_json(COMMAND, before.model_copy(update={"gates": dict(settings)}).model_dump())

    def move(self, name: str, target: str) -> None:
        """Renames a file or a folder with its content; at a URL it is copied first and removed then."""
        with writing_shards(self.location):
            if self.local_root is None:
                self.fs.mv(self._path(name), self._path(target), recursive=True)
            else:
                put_file(self.local_root / name, self.local_root / target)

    def rewrite(
        self,
        manifest: ShardManifest,
        change: Callable[[pa.Table], pa.Table],
        *,
        parts: Sequence[str] = ("data",),
        **update: Any,
    ) -> ShardManifest:
        """Rewrites rows of a finished shard, as `stage_changed` does; the shard changes completely or not at all.

        Returns the new manifest. Raises what `stage_changed` raises, and leaves the shard as it is then.
        """
        return self.replace(stage_changed(self, self.staging(), manifest, change, parts=parts, **update))

    def replace(self, staged: StagedShard) -> ShardManifest:
        """Commits the changed rows of a finished shard; returns its new manifest."""
        manifest = staged.manifest
        for name in (*staged.files, *staged.uploaded):
            self._put_staged(staged, name)
        self.put_json(f"shards/{manifest.shard}.json", manifest.model_dump())
        self.remove_replaced(manifest)
        return manifest

    def _put_staged(self, staged: StagedShard, name: str) -> None:
        if name in staged.uploaded:
            self.move(staged.uploaded[name], name)
        else:
            self.put(name, staged.files[name])

    def remove_replaced(self, manifest: ShardManifest) -> None:
        """Removes the files that `rewrite` replaced. A process that was killed may have left them."""
        for entry in manifest.files:
            self.remove(other_name(entry.path))

    def remove_leftovers(self) -> None:
        """Removes the files that `rewrite` replaced in any shard, and that a process that was killed left."""
        for part in ("data", "rejects"):
            # One listing: an object store takes long to say that a file is not there.
            names = set(self.names(part))
            for path in (f"{part}/{name}" for name in names):
                other = other_name(path)
                both = other.removeprefix(f"{part}/") in names
                if both and self.owner(path) is None and self.owner(other) is not None:
                    self.remove(path)

    def write_shard(
        self, manifest: ShardManifest, data: Iterable[pa.Table], rejects: Iterable[pa.Table]
    ) -> ShardManifest:
        """Writes a shard as `stage_tables` does, and raises what that raises; it is complete or does not appear."""
        return self.commit(stage_tables(self.staging(), manifest, data, rejects))

    def commit(self, staged: StagedShard) -> ShardManifest:
        """Adds a staged shard to the dataset; returns its manifest. Several threads may commit different shards."""
        manifest = staged.manifest
        # From here until the new manifest is written, the shard counts as not done.
        self.remove(f"shards/{manifest.shard}.json")
        for name in (f"{folder}/{manifest.shard}.parquet" for folder in ("data", "rejects")):
            if name in staged.uploaded or name in staged.files:
                self._put_staged(staged, name)
            else:
                self.remove(name)
            self.remove(other_name(name))
        self.put_json(f"shards/{manifest.shard}.json", manifest.model_dump())
        if self._claims is not None:
            self._claims.release(manifest.shard)
        self._describe({entry.path.partition("/")[0] for entry in manifest.files})
        return manifest

    def _describe(self, parts: Collection[str]) -> None:
        """Writes README.md if it is not there, or does not tell about these folders; another README.md stays."""
        with self._describing:
            if self._described.issuperset(parts):
                return
            try:
                before = described(self.read(README))
            except FileNotFoundError:
                before = frozenset[str]()
            except IsADirectoryError:
                before = None
            self._described = self._described.union(parts if before is None else before)
            if not self._described.issuperset(parts):
                self._described = self._described.union(parts)
                self.put_bytes(README, readme_of(self._described))

    def drop(self, shard: str) -> None:
        """Removes a shard from the dataset."""
        self.remove(f"shards/{shard}.json")
        for path in (f"data/{shard}.parquet", f"rejects/{shard}.parquet"):
            self.remove(path)
            self.remove(other_name(path))


@contextmanager
def open_writer(
    location: str, config: Mapping[str, Any], *, made_by: Command | None = None, shared: bool = False
) -> Generator[DatasetWriter]:
    """Locks a dataset folder for writing and yields its writer. All rows of a dataset have one configuration.

    By default one process can write at a time. With `shared` (local disk only), several processes that all set it can
    write at the same time, each the shards that it claims (`DatasetWriter.claim`). Removes the temporary files of
    writers that were killed. `made_by` is recorded in command.json, for `repair`.

    Raises UsageError if another process has a lock that excludes this one, or if the folder contains something else
    than a dataset; OtherConfigError if the dataset has another configuration; OlderVersionError if it has an older
    version of the record; DialogGenError if the folder cannot be written.
    """
    folder = DatasetFolder(location)
    if version_of(config) != SCHEMA_VERSION:
        raise OlderVersionError(location, version_of(config))
    with ExitStack() as stack:
        with writing_shards(location):
            if shared:
                tmp = stack.enter_context(lock_shared(folder, partial(_begin_shared, location, config, made_by)))
                claims = Claims(tmp.parent)
                stack.callback(claims.release_all)
                writer = DatasetWriter(location, config, tmp, claims)
            else:
                writer = DatasetWriter(location, config, stack.enter_context(lock_exclusively(folder)))
                _begin(writer, config, made_by, alone=True)
        yield writer


def _begin_shared(location: str, config: Mapping[str, Any], made_by: Command | None, tmp: Path, alone: bool) -> None:
    _begin(DatasetWriter(location, config, tmp), config, made_by, alone=alone)


def _begin(writer: DatasetWriter, config: Mapping[str, Any], made_by: Command | None, *, alone: bool) -> None:
    try:
        _refuse_foreign(writer, config, alone=alone)
    except DamagedConfigError:
        # The shards themselves say whether this is the configuration that they were made with.
        manifests = (writer.manifest(name) for name in writer.shards())
        if {manifest.config_sha256 for manifest in manifests if manifest} != {writer.config_sha256}:
            raise
    writer.put_config(config)
    if made_by is not None:
        writer.record_command(made_by.model_copy(update={"config": dict(config)}))


def _refuse_foreign(folder: DatasetFolder, config: Mapping[str, Any], *, alone: bool) -> None:
    if folder.exists("config.json"):
        _refuse_other(folder, config, alone=alone)
    elif folder.shards():
        DatasetFolder.existing(folder.location)
    else:
        _refuse_full(folder)


def _refuse_full(folder: DatasetFolder) -> None:
    if found := [name for name in folder.list("") if name != TMP]:
        raise UsageError(f"{folder.location} is no dataset folder, it holds {found[0]!r}: choose another folder.")


def check_free(location: str) -> None:
    """Raises UsageError, as `open_writer` does, if the folder is neither empty nor a dataset; changes nothing."""
    folder = DatasetFolder(location)
    if not folder.exists("config.json") and not folder.shards():
        _refuse_full(folder)


def check_config(location: str, config: Mapping[str, Any]) -> None:
    """Raises OtherConfigError or OlderVersionError if `open_writer` would raise it; changes nothing."""
    folder = DatasetFolder(location)
    if folder.exists("config.json"):
        _refuse_other(folder, config)


def _refuse_other(folder: DatasetFolder, wanted: Mapping[str, Any], *, alone: bool = True) -> None:
    # Without any row, no rows can be mixed: neither a first run with wrong settings, nor a damaged file that it left,
    # must block the folder.
    if alone and not folder.shards():
        _refuse_other_program(folder, wanted)
        return
    found = folder.config()
    if differing_keys(upgraded(found), wanted):
        raise OtherConfigError(folder.location, found=upgraded(found), wanted=wanted)
    if not folder.is_current():
        raise OlderVersionError(folder.location, min(folder.versions().values()))


def _refuse_other_program(folder: DatasetFolder, wanted: Mapping[str, Any]) -> None:
    """Raises UsageError if config.json is another program's, such as a model's, which shares few names with ours."""
    with suppress(DamagedConfigError):
        if "schema_version" in wanted and len(folder.config().keys() & wanted.keys()) < len(wanted) / 2:
            raise UsageError(
                f"{folder.location} is no dataset folder, its config.json says something else: choose another folder."
            )
