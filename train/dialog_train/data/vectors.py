"""Image vectors of a frozen image tower: computed once, stored as one Parquet file per dialogues shard.

    OUT/config.json            the model, its weights' hash, the transform, the crops, the dataset
    OUT/vectors/SHARD.parquet  image_id, image_sha256, vector: unit-norm, computed in float32, stored as float16;
                               the vector of the whole image, followed by those of its crops, if there are any

The key-value metadata of each file contains `source` (hash of the dialogues file), `rows`, `lost` (reason -> number of
images), and `content` (hash of the columns, as the pages' checksums leave out what says how to read them).
"""

import hashlib
import json
import math
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.mapping import Advance, Map, map_here
from dialog_gen.core.progress import OnProgress, counter, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.engines.devices import VARIABLE, visible_gpus
from dialog_gen.executors.processes import ProcessMap
from dialog_gen.sources.images import UnreadableImage, decode_image
from dialog_train.data.derived import (
    CONFIG_FILE,
    NO_IMAGE,
    Source,
    identity_of,
    identity_of_dataset,
    open_derived,
    open_shard,
    put,
    read_json,
    refuse_other,
    remove_others,
    single_image,
    sources_of,
)

_KIND = "image vectors"
_PART = "vectors"
_COLUMNS = ["image_id", "image_sha256", "images"]
_STORED = ["image_id", "image_sha256", "vector"]
_CROP_AREA = (0.5, 1.0)
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
DECODERS = min(16, _CORES - 1)
"""Default number of processes that decode images; one core is left for the image tower."""


def all_gpus() -> ProcessMap | None:
    """A `Map` with a process for each GPU of this machine; None if there are fewer than two."""
    gpus = visible_gpus()
    return ProcessMap([{VARIABLE: gpu} for gpu in gpus]) if len(gpus) > 1 else None


def decoders_per_gpu() -> int:
    """Default number of processes that decode images for each of several GPUs; they share this machine's cores."""
    return max(1, min(DECODERS, _CORES // max(1, len(visible_gpus())) - 1))


@dataclass(slots=True, kw_only=True)
class EmbedSummary:
    """Result of `embed_dataset`; the counts of vectors and lost images cover the whole dataset."""

    shards: int = 0
    skipped_shards: int = 0
    """Number of shards that were already embedded."""
    vectors: int = 0
    lost: Counter[str] = field(default_factory=Counter[str])
    """Reason -> number of images without a vector: those of `dialog_gen.sources.images`, "no_image", and
    "several_images" for a dialogue about several, of which no single vector is that of its texts."""


class VectorStore:
    """Reads the vectors that `embed_dataset` wrote. Raises UsageError if there are none."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.config = read_json(out / CONFIG_FILE, _KIND)
        if self.config.get("kind") != _KIND:
            raise UsageError(f"{out} is no folder of image vectors: give the --out of `dialog-train embed`.")

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return self.config["width"]

    @property
    def crops(self) -> int:
        """Crops per image. A row contains `crops` + 1 vectors: that of the whole image comes first."""
        return self.config["crops"]

    def check(self, clip: Clip) -> None:
        """Raises UsageError if the vectors were computed with another model."""
        refuse_other(self.out, self.config, identity_of(clip))

    def shards(self) -> list[str]:
        """Names of the shards, sorted."""
        return sorted(path.stem for path in (self.out / _PART).glob("*.parquet"))

    def source(self, shard: str) -> str | None:
        """Hash of the dialogues file that the shard was made from; None if the shard is missing or damaged."""
        metadata = _metadata(self.out, shard)
        return metadata["source"] if metadata else None

    def read(self, shard: str) -> pa.Table:
        """The rows of a shard: columns image_id, image_sha256, vector. Raises UsageError if the file is damaged."""
        file = self.out / _PART / f"{shard}.parquet"
        try:
            return _read(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UsageError(
                f"{file} is damaged ({error}): remove it and run again, which computes its vectors anew."
            ) from None


def embed_dataset(
    dataset: DatasetFolder,
    clip: Clip,
    out: Path,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    workers: int = 0,
    crops: int = 0,
    map_shards: Map = map_here,
    on_progress: OnProgress = ignore_progress,
) -> EmbedSummary:
    """Computes the vectors that are missing. The model is left on `device`.

    `map_shards` decides where shards are worked on: in other processes on their own devices, but never with more than
    one shard at a time. Images are decoded in `workers` processes, or in this process if `workers` is 0. `crops` is the
    number of additional views per image, see `crop_boxes`; training uses another view each epoch. Memory use depends
    neither on the size of the dataset nor on the size of a shard. An image that cannot be read is left out and counted.

    Raises UsageError for a dataset without images, for an `out` with vectors of another model, dataset or number of
    crops, and for a model whose vectors are not finite; DialogGenError if `out` cannot be written.
    """
    config = {
        "kind": _KIND,
        **identity_of(clip),
        **identity_of_dataset(dataset),
        "width": _width(clip),
        "crops": crops,
        "dtype": "float16",
    }
    sources = {source.shard: source for source in sources_of(dataset)}
    summary = EmbedSummary(shards=len(sources))
    total = sum(source.rows for source in sources.values())
    advance = counter(on_progress, "image vectors", total, "images")

    with open_derived(out, config, _PART) as store:
        todo: list[Source] = []
        for source in sources.values():
            metadata = _metadata(out, source.shard)
            current = metadata is not None and metadata["source"] == source.sha256 and _count(metadata) == source.rows
            if metadata is None or not current or not _is_whole(out, source.shard):
                todo.append(source)
                continue
            summary.skipped_shards += 1
            _add(summary, metadata)
            advance(source.rows)
        embed = _Embed(dataset, clip, store.tmp, batch_size, workers, crops)
        if map_shards.elsewhere:
            shared = [*dataset.shared(), *store.shared()]
            found = (result for _, result in map_shards(embed, todo, advance, gpu=True, shared=shared))
        else:
            # All at once: the processes that decode go on to the next shard.
            found = embed.shards(todo, torch.device(device), advance)
        for shard, metadata, file in found:
            put(store, f"{_PART}/{shard}.parquet", file)
            _add(summary, metadata)
        remove_others(store, _PART, {f"{shard}.parquet" for shard in sources})
    return summary


def crop_boxes(size: tuple[int, int], image_sha256: str, crops: int) -> list[tuple[int, int, int, int]]:
    """The (left, upper, right, lower) pixel coordinates of `crops` squares in an image of `size` (width, height).

    Each square covers 50 to 100 % of the area of the largest square that fits, at a random position. The squares are
    determined by the image's hash; a larger `crops` adds squares and keeps the first ones.
    """
    width, height = size
    boxes: list[tuple[int, int, int, int]] = []
    for number in range(crops):
        rng = random.Random(f"crop/{image_sha256}/{number}")
        side = max(1, round(min(size) * math.sqrt(rng.uniform(*_CROP_AREA))))
        left, upper = rng.randint(0, width - side), rng.randint(0, height - side)
        boxes.append((left, upper, left + side, upper + side))
    return boxes


class _Row(NamedTuple):
    shard: str
    image_id: str
    image_sha256: str
    data: bytes | str
    """The bytes of its image, or why it has none."""


class _Batch(NamedTuple):
    shard: str
    image_ids: list[str]
    image_sha256s: list[str]
    pixels: Tensor | None
    """Shape (images, views, 3, H, W); None if no image could be decoded."""
    lost: list[str]


class _Batches:
    """Yields batches of rows; a batch never mixes shards.

    It serves as the loader's batch sampler: a batch takes the place of a list of indices and is sent to a worker.
    """

    def __init__(self, dataset: DatasetFolder, sources: list[Source], batch_size: int) -> None:
        self._dataset, self._sources, self._batch_size = dataset, sources, batch_size

    def __iter__(self) -> Iterator[list[_Row]]:
        advice = "vectors need the images: make the dataset again, or get one that was shared with its images"
        for source in self._sources:
            has_image = False
            with open_shard(self._dataset, source, _COLUMNS, advice) as file:
                for batch in file.batches(self._batch_size, _COLUMNS):
                    rows = [_row(source.shard, row) for row in batch.to_pylist()]
                    has_image = has_image or any(row.data != NO_IMAGE for row in rows)
                    yield rows
            if not has_image:
                raise UsageError(f"{self._dataset.location}/{source.path} holds no images: {advice}.")


def _row(shard: str, row: dict[str, Any]) -> _Row:
    return _Row(shard, row["image_id"], row["image_sha256"], single_image(row))


class _Decoder:
    """Maps a row to (row without its bytes, pixels (views, 3, H, W) or the reason why there are none)."""

    def __init__(self, preprocess: Callable[[Any], Tensor], crops: int) -> None:
        self._preprocess, self._crops = preprocess, crops

    def __getitem__(self, row: _Row) -> tuple[_Row, Tensor | str]:
        if isinstance(row.data, str):
            return row, row.data
        try:
            image = decode_image(row.data)
            boxes = crop_boxes(image.size, row.image_sha256, self._crops)
            views = [image, *(image.crop(box) for box in boxes)]
            # Without the bytes, less data is sent back from the worker.
            return row._replace(data=b""), torch.stack([self._preprocess(view) for view in views])
        except UnreadableImage as error:
            return row._replace(data=b""), error.reason


def _collate(items: list[tuple[_Row, Tensor | str]]) -> _Batch:
    good = [(row, pixels) for row, pixels in items if isinstance(pixels, Tensor)]
    return _Batch(
        items[0][0].shard,
        [row.image_id for row, _ in good],
        [row.image_sha256 for row, _ in good],
        torch.stack([pixels for _, pixels in good]) if good else None,
        [reason for _, reason in items if isinstance(reason, str)],
    )


_Embedded = tuple[str, dict[str, Any], Path]
"""Name of the shard, metadata, finished file."""


@dataclass(frozen=True, slots=True)
class _Embed:
    """Computes the vectors of shards into temporary files."""

    dataset: DatasetFolder
    clip: Clip
    tmp: Path
    batch_size: int
    workers: int
    crops: int

    def __call__(self, source: Source, advance: Advance) -> _Embedded:
        """One shard, on a GPU if this process has one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Another process may still write the same shard to a file of another name, if it was given up.
        folder = Path(tempfile.mkdtemp(dir=self.tmp))
        (found,) = replace(self, tmp=folder).shards([source], device, advance)
        return found

    def shards(self, sources: list[Source], device: torch.device, advance: Advance) -> Iterator[_Embedded]:
        by_name = {source.shard: source for source in sources}
        rows = _Batches(self.dataset, sources, self.batch_size)
        decoder: Any = _Decoder(self.clip.preprocess, self.crops)
        loader: Any = DataLoader(decoder, batch_sampler=rows, num_workers=self.workers, collate_fn=_collate)
        model, width = self.clip.model.to(device), (1 + self.crops) * _width(self.clip)
        for shard, batches in groupby(loader, lambda batch: batch.shard):
            file = self.tmp / f"{shard}.parquet"
            yield shard, _embed_shard(file, by_name[shard], batches, model, width, advance), file


def _embed_shard(
    file: Path, source: Source, batches: Iterator[_Batch], model: Any, width: int, advance: Advance
) -> dict[str, Any]:
    schema = pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("image_sha256", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float16(), width), nullable=False),
        ]
    )
    count, lost, content = 0, Counter[str](), _Content()
    # Vectors do not compress.
    options: Any = {
        "compression": {"image_id": "zstd", "image_sha256": "zstd", "vector": "none"},
        "use_dictionary": False,
        "write_page_checksum": True,
    }
    with pq.ParquetWriter(file, schema, **options) as writer:
        for batch in batches:
            lost.update(batch.lost)
            if batch.pixels is not None:
                vectors = _encode(model, batch.pixels.flatten(0, 1))
                values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().reshape(-1)), width)
                table = pa.table([batch.image_ids, batch.image_sha256s, values], schema=schema)
                writer.write_table(table)
                content.add(table)
                count += len(values)
            advance(len(batch.image_ids) + len(batch.lost))
        if count + sum(lost.values()) != source.rows:
            raise UsageError(
                f"{source.path} does not have the {source.rows} rows that its manifest states: see `dialog-gen verify`."
            )
        metadata = {"source": source.sha256, "rows": str(count), "lost": json.dumps(dict(sorted(lost.items())))}
        writer.add_key_value_metadata({**metadata, "content": content.hexdigest()})
    return metadata


def _encode(model: Any, pixels: Tensor) -> Tensor:
    """Embeds images: (N, 3, H, W) -> unit-norm float16 (N, D) on the CPU."""
    parameter = next(model.parameters())
    with torch.inference_mode():
        vectors = normalize(model.encode_image(pixels.to(parameter.device, non_blocking=True)).float(), dim=-1)
    if not bool(vectors.isfinite().all()):
        raise UsageError("the model gives image vectors that are not finite: its weights are damaged.")
    return vectors.half().cpu()


def _width(clip: Clip) -> int:
    return int(clip.config["embed_dim"])


def _metadata(out: Path, shard: str) -> dict[str, Any] | None:
    """The file's key-value metadata; None if the file is missing, or damaged as far as its footer shows."""
    try:
        footer = pq.read_metadata(out / _PART / f"{shard}.parquet")
        found = {key: (footer.metadata or {})[key.encode()].decode() for key in ("source", "rows", "lost")}
        lost = json.loads(found["lost"])
        good = int(found["rows"]) == footer.num_rows and all(isinstance(count, int) for count in lost.values())
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException):
        return None
    return found if good else None


def _is_whole(out: Path, shard: str) -> bool:
    """Whether all that the file holds agrees with its checksums."""
    try:
        _read(out / _PART / f"{shard}.parquet")
    except (OSError, ValueError, pa.ArrowException):
        return False
    return True


def _read(file: Path) -> pa.Table:
    """Raises OSError, ValueError or ArrowException for a damaged file."""
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        table = parquet.read(columns=_STORED)
        # Earlier versions wrote no hash.
        written = (parquet.metadata.metadata or {}).get(b"content")
    if table.column_names != _STORED or not pa.types.is_fixed_size_list(table.schema.types[-1]):
        raise ValueError("it has other columns")
    if written is not None:
        content = _Content()
        content.add(table)
        if written.decode() != content.hexdigest():
            raise ValueError("its content is not what was written")
    return table


class _Content:
    """The hash of the columns of a table, in whatever parts it comes."""

    def __init__(self) -> None:
        self._columns = {name: hashlib.sha256() for name in _STORED}

    def add(self, table: pa.Table) -> None:
        for name, column in self._columns.items():
            if name == "vector":
                column.update(table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes())
            else:
                column.update("".join(f"{value!r}\n" for value in table[name].to_pylist()).encode())

    def hexdigest(self) -> str:
        return hashlib.sha256(b"".join(column.digest() for column in self._columns.values())).hexdigest()


def _count(metadata: dict[str, Any]) -> int:
    """Number of images with and without a vector."""
    return int(metadata["rows"]) + sum(json.loads(metadata["lost"]).values())


def _add(summary: EmbedSummary, metadata: dict[str, Any]) -> None:
    summary.vectors += int(metadata["rows"])
    summary.lost.update(parse_json(metadata["lost"]))
