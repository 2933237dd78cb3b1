"""Writes the rows of a shard into temporary files, which the dataset's writer commits.

A worker never writes under a final name. It stages a shard: the Parquet files are complete, fsynced and checksummed, in
a folder of the worker's own. `StagedShard` names them, and `DatasetWriter.commit` gives them their final names.
"""

import tempfile
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.blocks import digests
from dialog_gen.core.files import fsync, writing
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest, is_local
from dialog_gen.dataset.locks import TMP
from dialog_gen.dataset.record import dialogues_schema, rejects_schema, stored_sampling

# The Hub's viewer cannot show larger row groups of images, and none over 286 MiB. A writer keeps the rows of one group
# in memory, and needs about four times their size to write them.
ROWS_PER_GROUP = 100
BYTES_PER_GROUP = 64 << 20
writing_shards = partial(writing, left="finished shards are kept")


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

    @property
    def unused(self) -> Mapping[str, int]:
        """Reason -> number of things in the input that are not used for any row; it is part of the manifest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """Where a worker puts the files of its shards. Plain data, which can be sent to another process."""

    location: str
    """The dataset folder."""
    config_sha256: str
    folder: Path
    """The worker's local folder for temporary files. It exists while the dataset is open for writing."""
    logs: Path
    """The local folder of the engines' logs."""
    upload: str | None = None
    """For workers on other machines: the folder, relative to the dataset's, to which completed files are uploaded."""

    log_name: str = "engine"
    apart: bool = False
    """Whether each shard gets a folder of its own, because other processes may write the same shard."""

    @contextmanager
    def of_shard(self) -> Generator["Staging"]:
        """The staging of one shard; raises DialogGenError if its folder cannot be created."""
        uploads = self.apart and not is_local(self.location)
        with self.of(uuid4().hex if self.apart else "", uploads=uploads) as staging:
            yield staging

    @contextmanager
    def of(self, place: str, *, uploads: bool = False) -> Generator["Staging"]:
        """The staging of one worker, with a folder of its own, called `place`; "" leaves everything as it is.

        The folder stays: what it contains may still wait for its commit. With `uploads`, it is on this machine's disk,
        and is removed after the block. Raises DialogGenError if the folder cannot be created.
        """
        if not place:
            yield self
        elif uploads:
            with tempfile.TemporaryDirectory(prefix="dialog-gen-") as own:
                yield replace(self, folder=Path(own), logs=Path(own), upload=f"{TMP}/{place}")
        else:
            with writing_shards(self.location):
                (self.folder / place).mkdir()
            yield replace(self, folder=self.folder / place)

    def engine_log(self, number: int | None = None) -> Path:
        """The file for the output of an engine; `number` is that of one of several engines."""
        return self.logs / f"{self.log_name}{'' if number is None else f'-{number}'}.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedShard:
    """A shard whose files are complete and wait for their commit. Plain data, which can be sent to another process."""

    manifest: ShardManifest
    """It names the files by their final names."""
    files: Mapping[str, Path]
    """Final name -> the temporary file, on local disk."""
    uploaded: Mapping[str, str] = field(default_factory=dict[str, str])
    """Final name -> the name of the uploaded temporary file; both relative to the dataset folder."""


class ShardWriter:
    """Takes the rows of a shard in any order and writes them in the order of the input.

    A row stays in memory only until all rows before it have arrived. Not thread-safe.
    """

    def __init__(self, staging: Staging, unit: WorkUnit, **gated: Any) -> None:
        """Prepares the shard of `unit`; the first row creates a file.

        `gated`: the manifest's `gates_sha256` and `scores_sha256`, if gates were applied to every row that is added.
        """
        self._staging, self._unit, self._gated = staging, unit, gated
        self._waiting: dict[int, tuple[str, dict[str, Any]]] = {}
        self._next = 0
        self._parts = {name: Part(staging.folder, name, unit.name) for name in ("data", "rejects")}
        self._counts = Counter[str]()
        self._reasons = {"rejected": Counter[str](), "unreadable": Counter[str]()}
        self._fallbacks = Counter[str]()
        self._output_tokens = 0

    def add(self, index: int, row: dict[str, Any], output_tokens: int, *, fallback: str = "") -> int:
        """Adds row number `index` of the shard; a row that has a `status` is a reject.

        `fallback` is the row's protocol if that is not the run's own.

        Returns the number of bytes of images that were written to disk, and so are no longer in memory.
        """
        status = row.get("status", "accepted")
        self._counts[status] += 1
        if status != "accepted":
            self._reasons[status][row["reason"]] += 1
        elif fallback:
            self._fallbacks[fallback] += 1
        self._output_tokens += output_tokens
        self._waiting[index] = ("data" if status == "accepted" else "rejects", row)
        written = 0
        with writing_shards(self._staging.location):
            while self._next in self._waiting:
                part, ready = self._waiting.pop(self._next)
                written += self._parts[part].add(ready)
                self._next += 1
        return written

    def flush(self) -> int:
        """Writes the rows that wait for their row group to fill, as smaller ones; returns what `add` returns."""
        with writing_shards(self._staging.location):
            return sum(part.flush() for part in self._parts.values())

    def finish(self) -> StagedShard:
        """Completes the files of the shard. Raises ValueError if a row is missing."""
        if self._next != self._unit.count:
            raise ValueError(f"{self._unit.name}: {self._next} of {self._unit.count} rows")
        manifest = ShardManifest(
            shard=self._unit.name,
            config_sha256=self._staging.config_sha256,
            input_fingerprint=self._unit.fingerprint,
            images=self._unit.count,
            accepted=self._counts["accepted"],
            rejected=self._counts["rejected"],
            unreadable=self._counts["unreadable"],
            reasons={status: dict(sorted(reasons.items())) for status, reasons in self._reasons.items()},
            fallbacks=dict(sorted(self._fallbacks.items())),
            output_tokens=self._output_tokens,
            unused=dict(self._unit.unused),
            files=[],
            **self._gated,
        )
        return stage(self._staging, manifest, list(self._parts.values()))


def stage(staging: Staging, manifest: ShardManifest, parts: Sequence["Part"]) -> StagedShard:
    """Completes the files of a shard, and uploads them if the staging says so. `manifest` lacks only its files.

    Raises DialogGenError if the files cannot be written.
    """
    with writing_shards(staging.location):
        closed = [(entry, part.path) for part in parts if (entry := part.close())]
        staged = StagedShard(
            manifest=manifest.model_copy(update={"files": [entry for entry, _ in closed]}),
            files={entry.path: path for entry, path in closed},
        )
        return staged if staging.upload is None else _upload(staged, staging, staging.upload)


def _upload(staged: StagedShard, staging: Staging, target: str) -> StagedShard:
    """Moves the files of a shard to a folder of an object store, from where every machine can commit them."""
    uploaded = {name: f"{target}/{path.name}" for name, path in staged.files.items()}
    dataset = DatasetFolder(staging.location)
    for name, path in staged.files.items():
        dataset.fs.put_file(str(path), f"{dataset.root}/{uploaded[name]}")
        path.unlink()
    return replace(staged, files={}, uploaded=uploaded)


def image_bytes(row: Mapping[str, Any]) -> int:
    """The size of a row's images in bytes."""
    return sum(len(image["bytes"] or b"") for image in row["images"] or ())


class _FileWriter(pq.ParquetWriter):
    """A writer whose file is left incomplete after an error."""

    def __del__(self) -> None:
        # pyarrow's own would complete the file here, and print a traceback when the disk still refuses.
        pass


class Part:
    """A Parquet file that is being written; the first row group creates it."""

    def __init__(self, tmp: Path, folder: str, shard: str, *, target: str | None = None) -> None:
        """`folder` is "data" or "rejects"; `target` is the final name of the file."""
        self.target = target or f"{folder}/{shard}.parquet"
        self.path = tmp / f"{folder}-{shard}.parquet"
        self._rejects = folder != "data"
        self._schema: pa.Schema | None = None
        """None before the first row says which of the optional columns and fields the file has."""
        self._rows: list[dict[str, Any]] = []
        self._image_bytes = 0
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> int:
        """Adds a row; returns the number of bytes of images that were written to disk."""
        self._rows.append(row)
        self._image_bytes += image_bytes(row)
        full = len(self._rows) == ROWS_PER_GROUP or self._image_bytes >= BYTES_PER_GROUP
        return self.flush() if full else 0

    def close(self) -> FileEntry | None:
        """Completes the file, on disk; returns its entry, or None if it has no rows."""
        self.flush()
        if self._writer is None:
            return None
        self._writer.close()
        fsync(self.path)
        with self.path.open("rb") as file:
            found = digests(file)
        return FileEntry(
            path=self.target, rows=self.rows, bytes=found.bytes, sha256=found.sha256, block_crc32=found.block_crc32
        )

    def write(self, table: pa.Table) -> None:
        """Writes a table as one row group. All tables of a file have the same columns."""
        schema = self._schema_of(table.schema.names, stored_sampling(table.schema))
        self._writer = self._writer or self._open(schema)
        self._writer.write_table(table.cast(schema))
        self.rows += table.num_rows

    def flush(self) -> int:
        """Writes the added rows as one row group; returns the number of bytes of their images."""
        if self._rows:
            self.write(pa.Table.from_pylist(self._rows, self._schema_of(self._rows[0], self._rows[0]["sampling"])))
        written, self._rows, self._image_bytes = self._image_bytes, [], 0
        return written

    def _schema_of(self, columns: Collection[str], sampling: Collection[str]) -> pa.Schema:
        if self._schema is None:
            self._schema = rejects_schema(sampling) if self._rejects else dialogues_schema(columns, sampling)
        return self._schema

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        # A dictionary would copy every image in memory once more; captions and answers gain nothing from it.
        repeated: Any = [name for name in schema.names if name in _REPEATED]
        return _FileWriter(
            self.path,
            schema,
            compression="zstd",
            use_dictionary=repeated,
            write_page_index=True,
            use_content_defined_chunking=True,
        )


_REPEATED = ("model", "model_revision", "engine", "engine_version", "protocol", "prompt_sha256", "status", "reason")
