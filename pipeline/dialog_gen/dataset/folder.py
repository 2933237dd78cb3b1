"""A dataset folder on local disk or an fsspec URL, and how shards get into it exactly once.

    OUT/config.json            what every row was made with; another configuration is refused
    OUT/data/SHARD.parquet     accepted dialogues
    OUT/rejects/SHARD.parquet  what could not be used, with the reason
    OUT/shards/SHARD.json      the manifest: counts and checksums; written last, it is the mark of completion
    OUT/run.json               how the last run went
    OUT/gates.json             quality gates that went over the rows, and what they found
    OUT/engine.log             what the engine said in it (local disk only)

Parquet is written to a temporary name (on local disk in OUT/.tmp, else in the system's temporary folder), fsynced,
checksummed and renamed (uploaded). What is not named by a manifest is not part of the dataset, and is written again.
Accepted rows that get new columns go to data/SHARD.v2.parquet and back: the manifest decides which of the two counts.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import writing
from dialog_gen.dataset.record import DIALOGUES, REJECTS
from dialog_gen.sources.base import InputShard

_TMP = ".tmp"
# What the Hub's viewer can show of images; also how many rows are held back to be written in order.
ROWS_A_GROUP = 100
DERIVED = {"compacted": "compact", "rehydrated": "rehydrate"}
"""Key of config.json -> the command that made the folder from another one."""
_writing = partial(writing, left="finished shards are kept")
_FREE_TO_CHANGE = "A run may change --limit, --max-in-flight and what only costs time; anything else needs a new --out."


class FileEntry(BaseModel):
    """One Parquet file of a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(pattern=r"^(data|rejects)/[^/]*\.parquet$")
    """Relative to the dataset folder."""
    rows: int
    bytes: int
    sha256: str


class ShardManifest(BaseModel):
    """What a completed shard holds."""

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
    """"rejected" and "unreadable" -> reason -> images."""
    output_tokens: int
    files: list[FileEntry]
    """No entry for a file that would hold no rows."""
    gates_sha256: str | None = None
    """Hash of the gates' settings and of what they know of the whole set; None where no gate went over the rows."""

    @property
    def data(self) -> FileEntry | None:
        """The file of accepted rows; None where there are none."""
        return next((entry for entry in self.files if entry.path.startswith("data/")), None)


class DatasetFolder:
    """Reads a dataset folder. `location` is a local path or an fsspec URL."""

    def __init__(self, location: str) -> None:
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
        """Raises UsageError where there is no dataset."""
        folder = cls(location)
        if not folder.exists("config.json"):
            what = "is no dataset folder (it has no config.json)" if folder.exists("") else "does not exist"
            raise UsageError(f"{location} {what}: give the folder that `dialog-gen run --out` wrote.")
        return folder

    @classmethod
    def of(cls, dataset: "str | Path | DatasetFolder") -> "DatasetFolder":
        """The dataset at a location, or the folder itself if it is open. Raises UsageError where there is none."""
        return dataset if isinstance(dataset, DatasetFolder) else cls.existing(str(dataset))

    def config(self) -> dict[str, Any]:
        """What the dataset was made with. Raises UsageError if that is unreadable."""
        try:
            found = json.loads(self.read("config.json"))
        except ValueError as error:
            raise UsageError(f"{self.location}/config.json is damaged: {error}.") from None
        if not isinstance(found, dict):
            raise UsageError(f"{self.location}/config.json is damaged: it holds no object.")
        return found

    def manifest(self, shard: str) -> ShardManifest | None:
        """The manifest of a completed shard; None where it is missing or was cut off while being written."""
        try:
            return ShardManifest.model_validate_json(self.read(f"shards/{shard}.json"))
        except (FileNotFoundError, ValidationError):
            return None

    def shards(self) -> list[str]:
        """Names of the shards that have a manifest file, sorted."""
        return [name.removesuffix(".json") for name in self.list("shards") if name.endswith(".json")]

    def manifests(self) -> Iterator[ShardManifest]:
        """All readable manifests, in order."""
        for name in self.shards():
            if manifest := self.manifest(name):
                yield manifest

    def rows(self, columns: "Sequence[str] | None" = None, *, part: str = "data") -> Iterator[dict[str, Any]]:
        """The accepted rows ("rejects": the others) of all finished shards, in order; all columns or those named.

        Raises UsageError for a file that is gone or damaged.
        """
        for table in self.tables(columns, part=part):
            yield from table.to_pylist()

    def tables(self, columns: "Sequence[str] | None" = None, *, part: str = "data") -> Iterator[pa.Table]:
        """As `rows`, a hundred or so at a time."""
        for manifest in self.manifests():
            for entry in manifest.files:
                if entry.path.startswith(f"{part}/"):
                    yield from self.row_groups(entry, columns)

    def row_groups(self, entry: FileEntry, columns: "Sequence[str] | None" = None) -> Iterator[pa.Table]:
        """The rows of one file, a hundred or so at a time. Raises UsageError where it is gone or damaged."""
        try:
            with self.open(entry.path) as file:
                # Without these settings a column of images is read whole.
                parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
                for group in range(parquet.num_row_groups):
                    yield parquet.read_row_group(group, columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise UsageError(
                f"{self.location}/{entry.path} cannot be read ({error}): `dialog-gen verify` tells more."
            ) from error

    def list(self, folder: str) -> "list[str]":
        """Names in a subfolder, sorted; none where it does not exist."""
        try:
            return sorted(str(path).rsplit("/", 1)[-1] for path in self.fs.ls(self._path(folder), detail=False))
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        """Whether a file or subfolder is there."""
        return bool(self.fs.exists(self._path(name)))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            return self.fs.info(self._path(name))["size"]
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        return self.fs.cat_file(self._path(name))

    def open(self, name: str) -> Any:
        """A file to read from."""
        return self.fs.open(self._path(name), "rb")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")


class DatasetWriter(DatasetFolder):
    """Writes a dataset folder; see `open_writer`."""

    def __init__(self, location: str, config: Mapping[str, Any], tmp: Path) -> None:
        super().__init__(location)
        self.config_sha256 = sha256_json(config)
        self.tmp = tmp

    def is_complete(self, shard: InputShard) -> bool:
        """Whether the shard's rows are there, made from the same input; more rows than are asked for are kept."""
        found = self.completed(shard.name, shard.fingerprint)
        return found is not None and found.images >= shard.count

    def completed(self, shard: str, fingerprint: str) -> ShardManifest | None:
        """The manifest of a shard that was made from this input, with this configuration, and has its files."""
        found = self.manifest(shard)
        if found is None or (found.config_sha256, found.input_fingerprint) != (self.config_sha256, fingerprint):
            return None
        return found if all(self.size(entry.path) == entry.bytes for entry in found.files) else None

    def engine_log(self) -> Path:
        """An empty local file for what the engine says."""
        log = (self.local_root or self.tmp) / "engine.log"
        with _writing(self.location):
            log.write_bytes(b"")
        return log

    def put(self, name: str, file: Path) -> None:
        """Moves a finished local file to its place: whole or not at all."""
        with _writing(self.location):
            if self.local_root is None:
                self.fs.put_file(str(file), self._path(name))
                file.unlink()
                return
            target = self.local_root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
            _fsync(target.parent)

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a small file: whole or not at all."""
        part = self.tmp / name.replace("/", "-")
        with _writing(self.location), part.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        self.put(name, part)

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        with _writing(self.location), suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def rewrite(
        self, manifest: ShardManifest, change: Callable[[pa.Table], pa.Table], *, gates_sha256: str
    ) -> ShardManifest:
        """Writes the accepted rows of a finished shard anew, a row group at a time: whole or not at all.

        `change` gets each row group in order and returns as many rows, of the schema `DIALOGUES`.
        """
        update: dict[str, Any] = {"gates_sha256": gates_sha256}
        if old := manifest.data:
            part = _Part(self.tmp, "data", manifest.shard, target=_other_name(old.path))
            for table in self.row_groups(old):
                changed = change(table)
                with _writing(self.location):
                    part.write(changed)
            with _writing(self.location):
                entry = part.close()
            assert entry is not None  # noqa: S101 - a file without rows has no entry
            if entry.rows != old.rows:
                raise ValueError(f"{manifest.shard}: {entry.rows} of {old.rows} rows")
            self.put(entry.path, part.path)
            update["files"] = [entry if known is old else known for known in manifest.files]
        manifest = manifest.model_copy(update=update)
        self.put_json(f"shards/{manifest.shard}.json", manifest.model_dump())
        self.remove_replaced(manifest)
        return manifest

    def remove_replaced(self, manifest: ShardManifest) -> None:
        """Removes the accepted rows that a rewrite put others in the place of; a kill may have left them there."""
        if manifest.data:
            self.remove(_other_name(manifest.data.path))

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
        # From here to the manifest the shard counts as not done.
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
        self.remove(_other_name(f"data/{manifest.shard}.parquet"))
        manifest = manifest.model_copy(update={"files": files})
        self.put_json(f"shards/{manifest.shard}.json", manifest.model_dump())
        return manifest

    def drop(self, shard: str) -> None:
        """Takes a shard out of the dataset."""
        self.remove(f"shards/{shard}.json")
        for path in (f"data/{shard}.parquet", f"data/{shard}.v2.parquet", f"rejects/{shard}.parquet"):
            self.remove(path)


@contextmanager
def open_writer(location: str, config: Mapping[str, Any]) -> Generator[DatasetWriter]:
    """Holds a dataset folder for writing: one process at a time, one configuration for all rows.

    Temporary files of a run that was killed are removed. Raises UsageError where another process writes here (on local
    disk), where the folder holds another configuration (naming the keys that differ) or something else, or where it
    cannot be written.
    """
    folder = DatasetFolder(location)
    with ExitStack() as stack:
        with _writing(location):
            store = DatasetWriter(location, config, stack.enter_context(_locked(folder)))
            if store.exists("config.json"):
                _refuse_other_config(store, config)
            elif found := [name for name in store.list("") if name != _TMP]:
                raise UsageError(f"{location} is no dataset folder, it holds {found[0]!r}: choose another --out.")
            store.put_json("config.json", config)
        yield store


def check_config(location: str, config: Mapping[str, Any]) -> None:
    """Raises UsageError if `location` is a dataset of another configuration; touches nothing."""
    folder = DatasetFolder(location)
    if folder.exists("config.json"):
        _refuse_other_config(folder, config)


@contextmanager
def _locked(folder: DatasetFolder) -> Generator[Path]:
    """Yields an empty folder for temporary files. The system lets go of the lock when this process ends."""
    if folder.local_root is None:
        with tempfile.TemporaryDirectory(prefix="dialog-gen-") as tmp:
            yield Path(tmp)
        return
    folder.local_root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.local_root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another run is writing to {folder.location}: wait for it, or choose another --out."
            ) from None
        tmp = folder.local_root / _TMP
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        try:
            yield tmp
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    finally:
        os.close(descriptor)


def _refuse_other_config(folder: DatasetFolder, wanted: Mapping[str, Any]) -> None:
    found = folder.config()
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    # As long as there is no row, nothing can be mixed: a first try with wrong settings does not hold the folder.
    if keys and folder.shards():
        for key, command in DERIVED.items():
            if key in found and key not in wanted:
                raise UsageError(
                    f"{folder.location} was made by `dialog-gen {command}`: a run goes on in its own folder only. "
                    "Choose another --out."
                )
        differing = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in keys)
        raise UsageError(f"{folder.location} was made with another configuration ({differing}). {_FREE_TO_CHANGE}")


class ShardWriter:
    """Takes a shard's rows in any order, as they are done, and writes them in the order of the input.

    Rows are held only until those before them are there. Not for use from several threads at a time.
    """

    def __init__(self, store: DatasetWriter, shard: InputShard) -> None:
        self._store, self._shard = store, shard
        self._waiting: dict[int, tuple[str, dict[str, Any]]] = {}
        self._next = 0
        self._parts = {name: _Part(store.tmp, name, shard.name) for name in ("data", "rejects")}
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
        with _writing(self._store.location):
            while self._next in self._waiting:
                part, ready = self._waiting.pop(self._next)
                self._parts[part].add(ready)
                self._next += 1

    def commit(self) -> ShardManifest:
        """Makes the shard part of the dataset. Raises ValueError unless every row came."""
        if self._next != self._shard.count:
            raise ValueError(f"{self._shard.name}: {self._next} of {self._shard.count} rows")
        manifest = ShardManifest(
            shard=self._shard.name,
            config_sha256=self._store.config_sha256,
            input_fingerprint=self._shard.fingerprint,
            images=self._shard.count,
            accepted=self._counts["accepted"],
            rejected=self._counts["rejected"],
            unreadable=self._counts["unreadable"],
            reasons={status: dict(sorted(reasons.items())) for status, reasons in self._reasons.items()},
            output_tokens=self._output_tokens,
            files=[],
        )
        return self._store.commit(manifest, list(self._parts.values()))


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
        _fsync(self.path)
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


def _other_name(path: str) -> str:
    """The name that a shard's accepted rows do not have now: what a manifest names is never written over."""
    stem = path.removesuffix(".parquet")
    return f"{stem.removesuffix('.v2')}.parquet" if stem.endswith(".v2") else f"{stem}.v2.parquet"


def sha256_of(file: Path) -> str:
    """Hash of a local file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_json(value: Mapping[str, Any]) -> str:
    """Hash of JSON values, whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
