"""Writes shards into a dataset folder, each exactly once.

A Parquet file is written to a temporary name (in OUT/.tmp on local disk, otherwise in the system's temporary folder),
fsynced, checksummed, and renamed or uploaded. The manifest is written last: a file that no manifest names is not part
of the dataset and is written again.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import fsync, put_file, writing
from dialog_gen.core.hashing import sha256_json, sha256_of
from dialog_gen.dataset.errors import OlderVersionError, OtherConfigError, differing_keys
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest, other_name, upgraded, version_of
from dialog_gen.dataset.intact import footer
from dialog_gen.dataset.locks import TMP, Claims, lock_exclusively, lock_shared
from dialog_gen.dataset.record import DIALOGUES, REJECTS, SCHEMA_VERSION

# The Hub's viewer cannot show larger row groups of images. A writer keeps at most this number of rows in memory.
ROWS_PER_GROUP = 100
_writing = partial(writing, left="finished shards are kept")


class WorkUnit(Protocol):
    """The input of a shard, as far as the writer needs to know it."""

    @property
    def name(self) -> str:
        """The shard's name: unique in the dataset, stable, and fit for a file name."""
        ...

    @property
    def count(self) -> int:
        """The number of rows that the shard will have."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the rows are made from; if it changes, the shard is made again."""
        ...


class DatasetWriter(DatasetFolder):
    """Writes a dataset folder. `open_writer` locks the folder and returns one."""

    def __init__(self, location: str, config: Mapping[str, Any], tmp: Path, claims: Claims | None = None) -> None:
        """`tmp` is a folder for temporary files. `claims` is given if there are several writers."""
        super().__init__(location)
        self.config_sha256 = sha256_json(config)
        self.tmp = tmp
        self._claims = claims

    def is_complete(self, shard: WorkUnit) -> bool:
        """Whether the shard exists, made from the same input. More rows than the unit has are fine: they are kept."""
        found = self.completed(shard.name, shard.fingerprint)
        return found is not None and found.images >= shard.count

    def completed(self, shard: str, fingerprint: str) -> ShardManifest | None:
        """The manifest of a shard; None if the input or the configuration is another one, or a file is missing."""
        found = self.manifest(shard)
        if found is None or (found.config_sha256, found.input_fingerprint) != (self.config_sha256, fingerprint):
            return None
        return found if all(self.size(entry.path) == entry.bytes for entry in found.files) else None

    def claim(self, shard: WorkUnit) -> bool:
        """Claims a shard. Returns False if the shard is complete or if another writer is making it.

        Other writers do not make a claimed shard until it is committed or this writer ends.
        """
        if self._claims is None:
            return not self.is_complete(shard)
        with _writing(self.location):
            if not self._claims.take(shard.name):
                return False
        # Another writer may have completed it just before the claim.
        if self.is_complete(shard):
            self._claims.release(shard.name)
            return False
        return True

    def engine_log(self) -> Path:
        """Creates an empty local file for the engine's output; with several writers, each has its own."""
        name = "engine.log" if self._claims is None else f"engine-{os.getpid()}.log"
        log = (self.local_root or self.tmp) / name
        with _writing(self.location):
            log.write_bytes(b"")
        return log

    def put(self, name: str, file: Path) -> None:
        """Moves (or uploads) a finished local file into the dataset folder as `name`, atomically."""
        with _writing(self.location):
            if self.local_root is None:
                self.fs.put_file(str(file), self._path(name))
                file.unlink()
            else:
                put_file(file, self.local_root / name)

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a small JSON file, atomically."""
        part = self.tmp / name.replace("/", "-")
        with _writing(self.location):
            with part.open("w", encoding="utf-8") as file:
                json.dump(value, file, indent=2)
                file.write("\n")
            fsync(part)
        self.put(name, part)

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        with _writing(self.location), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def rewrite(
        self,
        manifest: ShardManifest,
        change: Callable[[pa.Table], pa.Table],
        *,
        parts: Sequence[str] = ("data",),
        **update: Any,
    ) -> ShardManifest:
        """Rewrites rows of a finished shard, one row group at a time; the shard changes completely or not at all.

        `change` takes each row group of `parts` ("data", "rejects") in order, as rows of the current version, and
        returns the same number of rows. `update` contains the fields of the manifest to change. Returns the new
        manifest. Raises UsageError for a file that cannot be read or whose columns are not those of the record.
        """
        files = [
            self._rewritten(manifest.shard, entry, change) if entry.path.partition("/")[0] in parts else entry
            for entry in manifest.files
        ]
        manifest = manifest.model_copy(update={"files": files, **update})
        self.put_json(f"shards/{manifest.shard}.json", manifest.model_dump())
        self.remove_replaced(manifest)
        return manifest

    def _rewritten(self, shard: str, old: FileEntry, change: Callable[[pa.Table], pa.Table]) -> FileEntry:
        footer(self, old)
        part = _Part(self.tmp, old.path.partition("/")[0], shard, target=other_name(old.path))
        for table in self.row_groups(old):
            changed = change(table)
            with _writing(self.location):
                part.write(changed)
        with _writing(self.location):
            entry = part.close()
        assert entry is not None  # noqa: S101 - a file without rows has no entry
        if entry.rows != old.rows:
            raise ValueError(f"{shard}: {entry.rows} of {old.rows} rows")
        self.put(entry.path, part.path)
        return entry

    def remove_replaced(self, manifest: ShardManifest) -> None:
        """Removes the files that `rewrite` replaced. A process that was killed may have left them."""
        for entry in manifest.files:
            self.remove(other_name(entry.path))

    def write_shard(
        self, manifest: ShardManifest, data: Iterable[pa.Table], rejects: Iterable[pa.Table]
    ) -> ShardManifest:
        """Writes a shard from iterables of tables, one row group per table; the shard is complete or does not appear.

        `manifest` is complete except for its files. Raises ValueError if the number of rows differs from its counts.
        """
        parts = [_Part(self.tmp, name, manifest.shard) for name in ("data", "rejects")]
        with _writing(self.location):
            for part, tables in zip(parts, (data, rejects), strict=True):
                for table in tables:
                    part.write(table)
        rows = [part.rows for part in parts]
        if rows != [manifest.accepted, manifest.rejected + manifest.unreadable]:
            raise ValueError(f"{manifest.shard}: the numbers of rows {rows} differ from the manifest's counts")
        return self.commit(manifest, parts)

    def commit(self, manifest: ShardManifest, parts: Sequence["_Part"]) -> ShardManifest:
        """Adds the written files to the dataset; returns the manifest with these files."""
        # From here until the new manifest is written, the shard counts as not done.
        self.remove(f"shards/{manifest.shard}.json")
        files: list[FileEntry] = []
        for part in parts:
            with _writing(self.location):
                entry = part.close()
            if entry is None:
                self.remove(part.target)
            else:
                self.put(entry.path, part.path)
                files.append(entry)
            self.remove(other_name(part.target))
        manifest = manifest.model_copy(update={"files": files})
        self.put_json(f"shards/{manifest.shard}.json", manifest.model_dump())
        if self._claims is not None:
            self._claims.release(manifest.shard)
        return manifest

    def drop(self, shard: str) -> None:
        """Removes a shard from the dataset."""
        self.remove(f"shards/{shard}.json")
        for path in (f"data/{shard}.parquet", f"rejects/{shard}.parquet"):
            self.remove(path)
            self.remove(other_name(path))


@contextmanager
def open_writer(location: str, config: Mapping[str, Any], *, shared: bool = False) -> Generator[DatasetWriter]:
    """Locks a dataset folder for writing and yields its writer. All rows of a dataset have one configuration.

    By default one process can write at a time. With `shared` (local disk only), several processes that all set it can
    write at the same time, each the shards that it claims (`DatasetWriter.claim`). Removes the temporary files of
    writers that were killed.

    Raises UsageError if another process has a lock that excludes this one, or if the folder contains something else
    than a dataset; OtherConfigError if the dataset has another configuration; OlderVersionError if it has an older
    version of the record; DialogGenError if the folder cannot be written.
    """
    folder = DatasetFolder(location)
    if version_of(config) != SCHEMA_VERSION:
        raise OlderVersionError(location, version_of(config))
    with ExitStack() as stack:
        with _writing(location):
            if shared:
                tmp = stack.enter_context(
                    lock_shared(folder, lambda tmp, alone: _begin(DatasetWriter(location, config, tmp), config, alone))
                )
                claims = Claims(tmp.parent)
                stack.callback(claims.release_all)
                writer = DatasetWriter(location, config, tmp, claims)
            else:
                writer = DatasetWriter(location, config, stack.enter_context(lock_exclusively(folder)))
                _begin(writer, config, alone=True)
        yield writer


def _begin(writer: DatasetWriter, config: Mapping[str, Any], alone: bool) -> None:
    if writer.exists("config.json"):
        _refuse_other(writer, config, alone=alone)
    elif found := [name for name in writer.list("") if name != TMP]:
        raise UsageError(f"{writer.location} is no dataset folder, it holds {found[0]!r}: choose another folder.")
    writer.put_json("config.json", config)


def check_config(location: str, config: Mapping[str, Any]) -> None:
    """Raises OtherConfigError or OlderVersionError if `open_writer` would raise it; changes nothing."""
    folder = DatasetFolder(location)
    if folder.exists("config.json"):
        _refuse_other(folder, config)


def _refuse_other(folder: DatasetFolder, wanted: Mapping[str, Any], *, alone: bool = True) -> None:
    found = folder.config()
    # Without any row, no rows can be mixed: a first run with wrong settings must not block the folder.
    if alone and not folder.shards():
        return
    if differing_keys(upgraded(found), wanted):
        raise OtherConfigError(folder.location, found=upgraded(found), wanted=wanted)
    if not folder.is_current():
        raise OlderVersionError(folder.location, min(folder.versions().values()))


class ShardWriter:
    """Takes the rows of a shard in any order and writes them in the order of the input.

    A row stays in memory only until all rows before it have arrived. Not thread-safe.
    """

    def __init__(self, dataset: DatasetWriter, unit: WorkUnit) -> None:
        """Prepares the shard of `unit`; the first row creates a file."""
        self._dataset, self._unit = dataset, unit
        self._waiting: dict[int, tuple[str, dict[str, Any]]] = {}
        self._next = 0
        self._parts = {name: _Part(dataset.tmp, name, unit.name) for name in ("data", "rejects")}
        self._counts = Counter[str]()
        self._reasons = {"rejected": Counter[str](), "unreadable": Counter[str]()}
        self._output_tokens = 0

    def add(self, index: int, row: dict[str, Any], output_tokens: int) -> None:
        """Adds row number `index` of the shard; a row that has a `status` is a reject."""
        status = row.get("status", "accepted")
        self._counts[status] += 1
        if status != "accepted":
            self._reasons[status][row["reason"]] += 1
        self._output_tokens += output_tokens
        self._waiting[index] = ("data" if status == "accepted" else "rejects", row)
        with _writing(self._dataset.location):
            while self._next in self._waiting:
                part, ready = self._waiting.pop(self._next)
                self._parts[part].add(ready)
                self._next += 1

    def commit(self) -> ShardManifest:
        """Adds the shard to the dataset. Raises ValueError if a row is missing."""
        if self._next != self._unit.count:
            raise ValueError(f"{self._unit.name}: {self._next} of {self._unit.count} rows")
        manifest = ShardManifest(
            shard=self._unit.name,
            config_sha256=self._dataset.config_sha256,
            input_fingerprint=self._unit.fingerprint,
            images=self._unit.count,
            accepted=self._counts["accepted"],
            rejected=self._counts["rejected"],
            unreadable=self._counts["unreadable"],
            reasons={status: dict(sorted(reasons.items())) for status, reasons in self._reasons.items()},
            output_tokens=self._output_tokens,
            files=[],
        )
        return self._dataset.commit(manifest, list(self._parts.values()))


class _Part:
    """A Parquet file that is being written; the first row group creates it."""

    def __init__(self, tmp: Path, folder: str, shard: str, *, target: str | None = None) -> None:
        self.target = target or f"{folder}/{shard}.parquet"
        self.path = tmp / f"{folder}-{shard}.parquet"
        self._schema = DIALOGUES if folder == "data" else REJECTS
        self._rows: list[dict[str, Any]] = []
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def close(self) -> FileEntry | None:
        if self._rows:
            self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        fsync(self.path)
        return FileEntry(path=self.target, rows=self.rows, bytes=self.path.stat().st_size, sha256=sha256_of(self.path))

    def write(self, table: pa.Table) -> None:
        """Writes a table as one row group."""
        self._writer = self._writer or self._open()
        self._writer.write_table(table.cast(self._schema))
        self.rows += table.num_rows

    def _flush(self) -> None:
        self.write(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _open(self) -> pq.ParquetWriter:
        # A dictionary would copy every image in memory once more; captions and answers gain nothing from it.
        repeated: Any = [name for name in self._schema.names if name in _REPEATED]
        return pq.ParquetWriter(
            self.path, self._schema, compression="zstd", use_dictionary=repeated, write_page_index=True
        )


_REPEATED = ("model", "model_revision", "engine", "engine_version", "protocol", "prompt_sha256", "status", "reason")
