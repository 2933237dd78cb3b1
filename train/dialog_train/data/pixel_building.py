"""Builds the pixel set: images are decoded and resized, and texts tokenised, once; training memory-maps the result.

    OUT/config.json       where images and texts come from, the model's resizing, its tokenizer
    OUT/rows/SHARD.json   reason -> number of images left out
    OUT/rows/SHARD.arrow  image_id, image_hash, pixels (3 x H x W, uint8), caption (ids), dialogues (ids of each QA
                          pair), and which texts were truncated; written last
    OUT/summary.json      rows of each shard, what was left out and why, what was truncated

One row per image. Of identical images only the first one is used. At 224 x 224 pixels an image takes 150 kB.
"""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torch.utils.data import DataLoader

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.dataset.writer import DatasetWriter
from dialog_gen.sources.images import UnreadableImage, decode_image
from dialog_train.data.checked_rows import rows_writer
from dialog_train.data.derived import open_derived, put, read_json, remove_others
from dialog_train.data.pixel_set import KIND, PART, SUMMARY_FILE, PixelSet
from dialog_train.data.pixel_sources import PixelShard, PixelSource, StoredImage
from dialog_train.data.row_files import count_rows, rows_schema, text_columns
from dialog_train.data.training_set import TrainingSetSummary

_IMAGES_PER_BATCH = 128
_log = logging.getLogger(__name__)


def build_pixel_set(source: PixelSource, clip: Clip, out: Path, *, workers: int = 0) -> PixelSet:
    """Builds the shards that are missing; each one is written atomically.

    Images are resized and cropped as `clip` does in evaluation, in `workers` processes, or in this process if `workers`
    is 0. Memory use depends neither on the size of the source nor on the size of its shards.

    Raises UsageError for a source without a usable row or an `out` that was made from something else; DialogGenError if
    `out` cannot be written.
    """
    encoder = TextEncoder(clip.tokenizer)
    # `Normalization` applies mean and standard deviation on the device, so the pixels stay uint8 here.
    resize: dict[str, Any] = {**clip.preprocess_config, "mean": [0.0] * 3, "std": [1.0] * 3}
    size: Any = resize["size"]
    shape = (3, size, size) if isinstance(size, int) else (3, *size)
    own = {"kind": KIND, "model": clip.name, "shape": shape, "resize": resize, "tokenizer": encoder.config}
    config: dict[str, Any] = json.loads(json.dumps({**own, **source.config}))
    with open_derived(out, config, PART) as store:
        found = _Shards(source, out)
        decoder: Any = _Decoder(image_transform_v2(PreprocessCfg(**resize), is_train=False))
        loader: Any = DataLoader(decoder, batch_sampler=found, num_workers=workers, collate_fn=_collate)
        for shard, batches in groupby(loader, lambda batch: batch.shard):
            _write_shard(store, shard, found.fingerprints[shard], batches, encoder, shape)
        remove_others(store, PART, {f"{shard}{end}" for shard in found.fingerprints for end in (".json", ".arrow")})
        summary = _summary(out, found.fingerprints)
        if not summary.rows:
            raise UsageError(f"{_location(config)} has no image to train on: {summary.dropped}.")
        store.put_json(SUMMARY_FILE, asdict(summary))
    pixel_set = PixelSet(out)
    dropped = {**summary.dropped, "duplicate_image": summary.rows - len(pixel_set)}
    left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
    pairs = count_of(summary.pairs, "question-answer pair")
    _log.info("pixel set: %s, %s; left out: %s", count_of(len(pixel_set), "image"), pairs, left_out)
    return pixel_set


class _Item(NamedTuple):
    shard: str
    image: StoredImage


class _Pixels(NamedTuple):
    shard: str
    images: list[StoredImage]
    """Without their bytes."""
    hashes: list[int]
    pixels: Tensor | None
    """(images, 3, H, W) uint8"""
    dropped: list[str]


class _Shards:
    """Yields batches of images from the shards that are missing.

    It serves as the loader's batch sampler: a batch takes the place of a list of indices and is sent to a worker.
    """

    def __init__(self, source: PixelSource, out: Path) -> None:
        self._source, self._out = source, out
        self.fingerprints: dict[str, str] = {}
        """Fingerprints of all shards visited so far, in order."""

    def __iter__(self) -> Iterator[list[_Item]]:
        for shard in self._source.shards():
            self.fingerprints[shard.name] = shard.fingerprint
            if count_rows(self._out / PART / f"{shard.name}.arrow", shard.fingerprint) is None:
                yield from _batches(shard)


def _batches(shard: PixelShard) -> Iterator[list[_Item]]:
    images = shard.read()
    while batch := [_Item(shard.name, image) for image in islice(images, _IMAGES_PER_BATCH)]:
        yield batch


class _Decoder:
    """Maps an item to (item without its bytes, hash, pixels (3, H, W) uint8 or the reason why it is left out)."""

    def __init__(self, resize: Any) -> None:
        self._resize = resize

    def __getitem__(self, item: _Item) -> tuple[_Item, int, Tensor | str]:
        image = item.image
        bare = item._replace(image=image._replace(data=b""))
        if not (image.caption or "").strip():
            return bare, 0, "without_caption"
        if image.dialogues == []:
            return bare, 0, "without_dialogue"
        if isinstance(image.data, str):
            return bare, 0, image.data
        try:
            pixels = self._resize(decode_image(image.data))
        except UnreadableImage as error:
            return bare, 0, error.reason
        head = hashlib.sha256(image.data).digest()[:8]
        # The transform divided the pixel values by 255.
        return bare, int.from_bytes(head), (pixels * 255).round().to(torch.uint8)


def _collate(items: list[tuple[_Item, int, Tensor | str]]) -> _Pixels:
    good = [(item.image, head, pixels) for item, head, pixels in items if isinstance(pixels, Tensor)]
    return _Pixels(
        items[0][0].shard,
        [image for image, _, _ in good],
        [head for _, head, _ in good],
        torch.stack([pixels for _, _, pixels in good]) if good else None,
        [reason for _, _, reason in items if isinstance(reason, str)],
    )


def _write_shard(
    store: DatasetWriter,
    shard: str,
    fingerprint: str,
    batches: Iterator[_Pixels],
    encoder: TextEncoder,
    shape: tuple[int, ...],
) -> None:
    numbers = math.prod(shape)
    schema = rows_schema(
        pa.field("image_hash", pa.uint64(), nullable=False),
        pa.field("pixels", pa.list_(pa.uint8(), numbers), nullable=False),
    )
    part, dropped = store.tmp / f"{shard}.arrow", Counter[str]()
    with rows_writer(part, schema, fingerprint) as writer:
        for batch in batches:
            dropped.update(batch.dropped)
            if batch.pixels is None:
                continue
            captions = [image.caption or "" for image in batch.images]
            dialogues = [image.dialogues or [] for image in batch.images]
            columns = [
                pa.array([image.image_id for image in batch.images]),
                pa.array(batch.hashes, pa.uint64()),
                pa.FixedSizeListArray.from_arrays(pa.array(batch.pixels.numpy().reshape(-1)), numbers),
                *text_columns(encoder, captions, dialogues),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    store.put_json(f"{PART}/{shard}.json", dict(sorted(dropped.items())))
    put(store, f"{PART}/{shard}.arrow", part)


def _summary(out: Path, fingerprints: dict[str, str]) -> TrainingSetSummary:
    counts, dropped, shards = Counter[str](), Counter[str](), list[tuple[str, int]]()
    for shard, fingerprint in fingerprints.items():
        found = count_rows(out / PART / f"{shard}.arrow", fingerprint)
        if found is None:
            raise OSError(f"{shard}.arrow cannot be read back")
        counts.update(found)
        dropped.update(read_json(out / PART / f"{shard}.json", KIND))
        shards.append((shard, found["rows"]))
    return TrainingSetSummary(
        rows=counts["rows"],
        pairs=counts["pairs"],
        dropped=dict(sorted(dropped.items())),
        truncated={name: counts[name] for name in ("captions", "dialogues", "concatenated")},
        shards=shards,
    )


def _location(config: dict[str, Any]) -> str:
    return config.get("images") or config["dialogues"]
