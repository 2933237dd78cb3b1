"""How shards get into a dataset folder exactly once.

Parquet is written to a temporary name (on local disk in OUT/.tmp, else in the system's temporary folder), fsynced,
checksummed and renamed (uploaded). The manifest comes last: what it does not name is not part of the dataset, and is
written again.
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
from dialog_gen.dataset.errors import OlderVersionError, OtherConfigError, differing_keys
from dialog_gen.dataset.folder import (
    DatasetFolder,
    FileEntry,
    ShardManifest,
    other_name,
    sha256_json,
    sha256_of,
    upgraded,
    version_of,
)
from dialog_gen.dataset.intact import footer
from dialog_gen.dataset.locks import TMP, Claims, held_alone, held_together
from dialog_gen.dataset.record import DIALOGUES, REJECTS, SCHEMA_VERSION

# What the Hub's viewer can show of images; also how many rows are held back to be written in order.
ROWS_A_GROUP = 100
_writing = partial(writing, left="finished shards are kept")


class WorkUnit(Protocol):
    """What a shard is made of, as far as its writer must know."""

    @property
    def name(self) -> str:
        """The shard's name: unique in the dataset, stable, and fit for a file name."""
        ...

    @property
    def count(self) -> int:
        """Rows that it gives."""
        ...

    @property
    def fingerprint(self) -> str:
        """Covers all that the rows are made from; another one, and the shard is made anew."""
        ...


class DatasetWriter(DatasetFolder):
    """Writes a dataset folder; see `open_writer`."""

    def __init__(self, location: str, config: Mapping[str, Any], tmp: Path, claims: Claims | None = None) -> None:
        """`tmp` is a folder for temporary files, `claims` are those of one among several writers."""
        super().__init__(location)
        self.config_sha256 = sha256_json(config)
        self.tmp = tmp
        self._claims = claims

    def is_complete(self, shard: WorkUnit) -> bool:
        """Whether the shard's rows are there, made from the same input; more rows than are asked for are kept."""
        found = self.completed(shard.name, shard.fingerprint)
        return found is not None and found.images >= shard.count

    def completed(self, shard: str, fingerprint: str) -> ShardManifest | None:
        """The manifest of a shard that was made from this input, with this configuration, and has its files."""
        found = self.manifest(shard)
        if found is None or (found.config_sha256, found.input_fingerprint) != (self.config_sha256, fingerprint):
            return None
        return found if all(self.size(entry.path) == entry.bytes for entry in found.files) else None

    def claim(self, shard: WorkUnit) -> bool:
        """Whether this writer is to make the shard: it is not complete, and no other writer is making it.

        The others leave it alone from then on, until it is committed or this writer ends.
        """
        if self._claims is None:
            return not self.is_complete(shard)
        with _writing(self.location):
            if not self._claims.take(shard.name):
                return False
        # Another writer may have made it a moment ago.
        if self.is_complete(shard):
            self._claims.release(shard.name)
            return False
        return True

    def engine_log(self) -> Path:
        """An empty local file for what the engine prints; each of several writers has its own."""
        name = "engine.log" if self._claims is None else f"engine-{os.getpid()}.log"
        log = (self.local_root or self.tmp) / name
        with _writing(self.location):
            log.write_bytes(b"")
        return log

    def put(self, name: str, file: Path) -> None:
        """Moves a finished local file to its place: whole or not at all."""
        with _writing(self.location):
            if self.local_root is None:
                self.fs.put_file(str(file), self._path(name))
                file.unlink()
            else:
                put_file(file, self.local_root / name)

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a small file: whole or not at all."""
        part = self.tmp / name.replace("/", "-")
        with _writing(self.location):
            with part.open("w", encoding="utf-8") as file:
                json.dump(value, file, indent=2)
                file.write("\n")
            fsync(part)
        self.put(name, part)

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
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
        """Writes rows of a finished shard anew, a row group at a time: whole or not at all.

        `change` gets each row group of `parts` ("data", "rejects") in order, as rows of the current version, and
        returns as many. `update` holds fields of the manifest that change with them. Returns the new manifest. Raises
        UsageError for a file that cannot be read or has other columns than the record.
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
        """Removes the rows that others were written in place of; a kill may have left them there."""
        for entry in manifest.files:
            self.remove(other_name(entry.path))

    def write_shard(
        self, manifest: ShardManifest, data: Iterable[pa.Table], rejects: Iterable[pa.Table]
    ) -> ShardManifest:
        """Writes a shard of tables that come one after another, each a row group: whole or not at all.

        `manifest` says everything but the files. Raises ValueError unless there are as many rows as it counts.
        """
        parts = [_Part(self.tmp, name, manifest.shard) for name in ("data", "rejects")]
        with _writing(self.location):
            for part, tables in zip(parts, (data, rejects), strict=True):
                for table in tables:
                    part.write(table)
        rows = [part.rows for part in parts]
        if rows != [manifest.accepted, manifest.rejected + manifest.unreadable]:
            raise ValueError(f"{manifest.shard}: {rows} rows are not those that are counted")
        return self.commit(manifest, parts)

    def commit(self, manifest: ShardManifest, parts: Sequence["_Part"]) -> ShardManifest:
        """Makes written parts part of the dataset; returns the manifest with their files."""
        # From here to the new manifest the shard counts as not done.
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
        """Takes a shard out of the dataset."""
        self.remove(f"shards/{shard}.json")
        for path in (f"data/{shard}.parquet", f"rejects/{shard}.parquet"):
            self.remove(path)
            self.remove(other_name(path))


@contextmanager
def open_writer(location: str, config: Mapping[str, Any], *, shared: bool = False) -> Generator[DatasetWriter]:
    """Holds a dataset folder for writing: one configuration for all rows, and one process at a time.

    With `shared` (local disk only) other processes that give it too may write there at the same time, each the shards
    that it claims (`DatasetWriter.claim`). What killed writers left is removed. Raises UsageError where another process
    writes there, or holds the folder in the other way; where the folder holds another configuration (OtherConfigError),
    a dataset of an older version of the record (OlderVersionError) or something else; DialogGenError where it cannot be
    written.
    """
    folder = DatasetFolder(location)
    if version_of(config) != SCHEMA_VERSION:
        raise OlderVersionError(location, version_of(config))
    with ExitStack() as stack:
        with _writing(location):
            if shared:
                tmp = stack.enter_context(
                    held_together(
                        folder, lambda tmp, alone: _begin(DatasetWriter(location, config, tmp), config, alone)
                    )
                )
                claims = Claims(tmp.parent)
                stack.callback(claims.release_all)
                writer = DatasetWriter(location, config, tmp, claims)
            else:
                writer = DatasetWriter(location, config, stack.enter_context(held_alone(folder)))
                _begin(writer, config, alone=True)
        yield writer


def _begin(writer: DatasetWriter, config: Mapping[str, Any], alone: bool) -> None:
    if writer.exists("config.json"):
        _refuse_other(writer, config, alone=alone)
    elif found := [name for name in writer.list("") if name != TMP]:
        raise UsageError(f"{writer.location} is no dataset folder, it holds {found[0]!r}: choose another folder.")
    writer.put_json("config.json", config)


def check_config(location: str, config: Mapping[str, Any]) -> None:
    """Raises OtherConfigError or OlderVersionError where `open_writer` would; touches nothing."""
    folder = DatasetFolder(location)
    if folder.exists("config.json"):
        _refuse_other(folder, config)


def _refuse_other(folder: DatasetFolder, wanted: Mapping[str, Any], *, alone: bool = True) -> None:
    found = folder.config()
    # As long as there is no row, nothing can be mixed: a first try with wrong settings does not hold the folder.
    if alone and not folder.shards():
        return
    if differing_keys(upgraded(found), wanted):
        raise OtherConfigError(folder.location, found=upgraded(found), wanted=wanted)
    if not folder.is_current():
        raise OlderVersionError(folder.location, min(folder.versions().values()))


class ShardWriter:
    """Takes a shard's rows in any order, as they are done, and writes them in the order of the input.

    Rows are held only until those before them are there. Not for use from several threads at a time.
    """

    def __init__(self, dataset: DatasetWriter, unit: WorkUnit) -> None:
        """Writes nothing yet."""
        self._dataset, self._unit = dataset, unit
        self._waiting: dict[int, tuple[str, dict[str, Any]]] = {}
        self._next = 0
        self._parts = {name: _Part(dataset.tmp, name, unit.name) for name in ("data", "rejects")}
        self._counts = Counter[str]()
        self._reasons = {"rejected": Counter[str](), "unreadable": Counter[str]()}
        self._output_tokens = 0

    def add(self, index: int, row: dict[str, Any], output_tokens: int) -> None:
        """Row number `index` of the shard; rows with a `status` go to the rejects."""
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
        """Makes the shard part of the dataset. Raises ValueError unless every row came."""
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
    """One Parquet file on its way; there is none as long as there is no row."""

    def __init__(self, tmp: Path, folder: str, shard: str, *, target: str | None = None) -> None:
        self.target = target or f"{folder}/{shard}.parquet"
        self.path = tmp / f"{folder}-{shard}.parquet"
        self._schema = DIALOGUES if folder == "data" else REJECTS
        self._rows: list[dict[str, Any]] = []
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_A_GROUP:
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
        """A row group."""
        self._writer = self._writer or self._open()
        self._writer.write_table(table.cast(self._schema))
        self.rows += table.num_rows

    def _flush(self) -> None:
        self.write(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def _open(self) -> pq.ParquetWriter:
        # Dictionaries would copy every image once more; captions and answers gain nothing from them.
        repeated: Any = [name for name in self._schema.names if name in _REPEATED]
        return pq.ParquetWriter(
            self.path, self._schema, compression="zstd", use_dictionary=repeated, write_page_index=True
        )


_REPEATED = ("model", "model_revision", "engine", "engine_version", "protocol", "prompt_sha256", "status", "reason")
