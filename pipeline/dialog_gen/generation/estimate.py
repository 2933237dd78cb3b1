"""Estimates a run before it: shards, requests, tokens, GPU hours, time, storage and price; needs no GPU.

The figures come from the sizes of the model and the protocol (`workload.py`, `speed.py`), or, which is better, from a
dataset that a run has made: at the size of that dataset, they are those of its run.json.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dialog_gen.core.errors import UsageError, check_within
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.core.visible import visible
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.generation.image_tokens import COUNT, USUAL, mean_images, sizes_px, tokens_of_images
from dialog_gen.generation.speed import gpu_of, speed
from dialog_gen.generation.workload import FALLBACK_SHARE, Workload, counted, estimated, model_sizes
from dialog_gen.models.dimensions import dimensions
from dialog_gen.protocols.protocol import load_protocol
from dialog_gen.sources.base import open_source
from dialog_gen.sources.pixels import LARGEST_PIXELS, PixelLimits

_SHARD_SIZE = 1024
_IMAGE_BYTES = 45_000
"""Of web images whose shorter side is 336 pixels, as JPEG."""
_ROW_BYTES, _BYTES_PER_TOKEN = 400, 3
"""Of a row without its image, compressed: its ids and provenance, and each token of its texts."""
_SIDECAR_BYTES = 1_200
_SAMPLES = 256
_SAMPLED_SHARDS = 256
_SAMPLED_FOOTERS = 8
_MOST_IMAGES = 10**15
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A plan: `figures` for programs, `text` for people."""

    figures: dict[str, Any]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    images: int
    shards: int | None = None
    image_bytes: float | None = None
    """The mean size of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    with_images: float
    """Bytes of a row."""
    without_images: float
    sidecar: float
    """Bytes of a shard's manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rate:
    """Images a second of one GPU."""

    low: float
    high: float
    basis: str


def plan(
    *,
    images: str | int | None = None,
    model: str | None = None,
    protocol: str | None = None,
    gpus: int = 1,
    gpu: str | None = None,
    rate: float | None = None,
    from_dataset: str | None = None,
    shard_size: int | None = None,
    answer_tokens: float | None = None,
    images_per_sample: str | float = "first",
    fallback_share: float | None = None,
    max_pixels: int | None = None,
    kv_cache_dtype: str | None = None,
    quantization: str | None = None,
    gpu_hour_price: float | None = None,
    price_input: float | None = None,
    price_output: float | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Estimate:
    """Estimates what a run takes.

    `images` is their number, or a source, which is listed; by default as many as `from_dataset` has. The parameters are
    the flags of `dialog-gen plan`, which explains them; `from_dataset` is `--from`. Prices are in one currency, of one
    GPU for an hour, and of a million tokens.

    Raises UsageError for wrong or missing settings, and for a model whose speed cannot be estimated.
    """
    for flag, value, least, most in (
        ("--gpus", gpus, 1, 10**7),
        ("--shard-size", shard_size, 1, 10**9),
        ("--answer-tokens", answer_tokens, 1, 1 << 30),
        ("--max-pixels", max_pixels, 1, LARGEST_PIXELS),
        ("--rate", rate, 0, 10**9),
        ("--gpu-hour-price", gpu_hour_price, 0, 10**9),
        ("--price-input", price_input, 0, 10**9),
        ("--price-output", price_output, 0, 10**9),
    ):
        if value is not None:
            check_within(flag, value, least, most)
    for flag, value in (("--kv-cache-dtype", kv_cache_dtype), ("--quantization", quantization)):
        if value is not None and value != "auto" and not value.startswith("fp8"):
            raise UsageError(f"{flag} {value}: an estimate knows only fp8 and its kinds; leave it out, or use --from.")
    if rate is not None and not rate > 0:
        raise UsageError(f"--rate {rate:g}: give the images per second of one GPU, more than 0.")
    if gpu is not None and rate is not None:
        raise UsageError(f"--gpu {gpu} and --rate {rate:g}: give one of them.")
    if from_dataset is None and model is None:
        raise UsageError("a plan needs --model, or a dataset that a run has made: --from.")
    if fallback_share is not None and not 0 <= fallback_share <= 1:
        raise UsageError(f"--fallback-share {fallback_share:g}: give the part of the images, from 0 to 1.")
    ours = model, protocol, answer_tokens, fallback_share, max_pixels, kv_cache_dtype, quantization
    if from_dataset is not None and (any(value is not None for value in ours) or images_per_sample != "first"):
        raise UsageError("--from has a model, its settings and its answers: leave out --model, --protocol and others.")
    made = None if from_dataset is None else _Made.of(from_dataset)
    size = shard_size or (made.shard_size if made else _SHARD_SIZE)
    found = _input_of(images, size, made, on_progress)
    speed_of, basis, each, share, fallback = None, "", 1.0, None, None
    if made is not None:
        work, basis = made.work, f"counted by {from_dataset}"
        source = f"measured by {from_dataset}{'' if made.gpus else ', whose engine had no GPU'}"
        measured = _Rate(low=made.rate, high=made.rate, basis=source) if made.rate else None
    else:
        try:
            sizes, measured = model_sizes(str(model)), None
        except UsageError as error:
            if price_input is None:
                raise
            # The model of a cloud, whose tokens for an image nobody but the cloud knows.
            raise UsageError(
                f"{str(error).removesuffix('.')}; for a model of a server, use --from a small run of it."
            ) from None
        each = mean_images(images_per_sample, images, size, sizes)
        typical = sizes_px(images, size) if sizes.image_tokens_vary else []
        most = max_pixels or (sizes.model.max_pixels if sizes.model else None)
        tokens = tokens_of_images(sizes, typical or [USUAL], each, PixelLimits(most=most))
        if tokens is None:
            raise UsageError(f"config.json of {model} does not say how many tokens an image takes: use --from a run.")
        wants_speed = gpu is not None and gpu.lower() != "none"
        shape = dimensions(sizes.name, sizes.config, tokens / each) if wants_speed else None
        share = FALLBACK_SHARE if fallback_share is None else fallback_share
        work = estimated(
            sizes,
            protocol,
            image_tokens=tokens,
            answer_tokens=answer_tokens,
            fallback_share=share,
        )
        fallback = load_protocol(protocol or sizes.default_protocol).fallback
        basis = "estimated" if not sizes.counted else "estimated, prompts counted by the model's tokenizer"
        if sizes.image_tokens_vary and not typical:
            basis += f", images of {USUAL[0]} x {USUAL[1]} pixels"
        if shape is not None:
            speed_of = speed(
                shape,
                gpu_of(str(gpu)),
                prompt_tokens=work.prompt_tokens / work.images,
                new_tokens=work.new_tokens / work.images,
                output_tokens=work.output_tokens / work.images,
                requests=work.requests / work.images,
                fp8_cache=(kv_cache_dtype or "").startswith("fp8"),
                fp8_weights=(quantization or "").startswith("fp8"),
            )
            measured = _Rate(low=speed_of.in_turn, high=speed_of.overlapped, basis=f"estimated for {gpu}")
    if gpu is not None and made is not None and gpu.lower() != "none":
        raise UsageError(f"--gpu {gpu}: --from has a measured rate; leave one of them out.")
    if gpu is not None and gpu.lower() == "none":
        measured = None
    if rate is not None:
        measured = _Rate(low=rate, high=rate, basis="--rate")
    scaled = work.scaled(found.images)
    shards = found.shards if found.shards is not None else -(-found.images // size)
    storage = made.storage if made else _assumed_storage(found, work, each)
    figures: dict[str, Any] = {
        "images": found.images,
        "shards": shards,
        "shard_size": size,
        "model": model if made is None else made.model,
        **({"images_per_sample": round(each, 2)} if each != 1 else {}),
        **({"fallback": Path(fallback).stem, "fallback_share": share} if fallback else {}),
        "requests": scaled.requests,
        "prompt_tokens": scaled.prompt_tokens,
        "output_tokens": scaled.output_tokens,
        "tokens_basis": basis,
        "gpus": gpus if measured else 0,
        "images_per_second_per_gpu": [round(measured.low, 2), round(measured.high, 2)] if measured else None,
        "rate_basis": measured.basis if measured else None,
        "gpu_hours": _hours(found.images, measured),
        "wall_hours": _hours(found.images, measured, gpus),
        "storage": {
            "with_images_bytes": round(found.images * storage.with_images),
            "without_images_bytes": round(found.images * storage.without_images),
            "sidecars": shards,
            "sidecar_bytes": round(shards * storage.sidecar),
            "basis": f"measured from {from_dataset}" if made else "estimated",
        },
        "price": _price(found.images, scaled, measured, gpu_hour_price, price_input, price_output),
    }
    if speed_of is not None:
        figures["speed"] = {
            "prefill_seconds_per_image": round(speed_of.prefill_s, 5),
            "decode_seconds_per_image": round(speed_of.decode_s, 5),
            "kv_cache_tokens": speed_of.kv_cache_tokens,
            "dialogues_in_flight": speed_of.in_flight,
        }
    return Estimate(figures=figures, text=_text(figures))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A dataset that a run has made."""

    images: int
    shards: int
    shard_size: int
    model: str
    work: Workload
    rate: float
    """Images a second of one GPU, or of the run if it had no GPU."""
    gpus: int
    storage: _Storage

    @classmethod
    def of(cls, location: str) -> "_Made":
        """Reads run.json, and the manifests of some shards. Raises UsageError if there is no finished run."""
        where = re.sub(r"(^|/)run\.json$", "", location.rstrip("/")) or "."
        folder = DatasetFolder.existing(where)
        config = folder.config()
        if not folder.exists("run.json"):
            raise UsageError(f"--from {where}: no run has finished there (no run.json).")
        try:
            summary: Any = unsealed(folder.read("run.json"))
            dataset = summary["dataset"]
            images, shards, work = int(dataset["images"]), int(dataset["shards"]), counted(summary, f"{where}/run.json")
            per_second = float(summary["run"]["images_per_second"])
            gpus = int((summary.get("cost") or {}).get("gpus") or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"--from {where}: run.json cannot be read ({error!r}).") from None
        return cls(
            images=images,
            shards=shards,
            shard_size=int(config["shard_size"]),
            model=str(config["model"]),
            work=work,
            rate=per_second / max(1, gpus),
            gpus=gpus,
            storage=_measured_storage(folder),
        )


def _input_of(images: str | int | None, size: int, made: _Made | None, on_progress: OnProgress) -> _Input:
    if images is None:
        if made is None:
            raise UsageError("a plan needs --images: their number, or a folder, glob or URL to list.")
        images = made.images
    text = str(images).strip()
    if COUNT.fullmatch(text):
        number = float(text.replace("_", "").replace(",", ""))
        check_within("--images", number, 0, _MOST_IMAGES)
        count = (
            int(text.replace("_", "").replace(",", ""))
            if number.is_integer() and "e" not in text.lower()
            else int(number)
        )
        if number != count or count < 1:
            raise UsageError(f"--images {text}: give a whole number of images, at least 1, or a source.")
        if made is None or size != made.shard_size or made.shards == -(-made.images // size):
            return _Input(images=count)
        # Shards end with their tar or folder, so they are smaller than their maximum.
        return _Input(images=count, shards=-(-count * made.shards // made.images))
    total = shards = sized = size_bytes = 0
    for shard in open_source(text, shard_size=size):
        shards, total = shards + 1, total + shard.count
        known = shard.image_sizes()
        sized, size_bytes = sized + len(known), size_bytes + sum(known)
        on_progress("listing", total, None, "images")
    return _Input(images=total, shards=shards, image_bytes=size_bytes / sized if sized else None)


def _measured_storage(folder: DatasetFolder) -> _Storage:
    rows = size = sidecars = sidecar_bytes = whole = images = 0
    for number, manifest in enumerate(islice(folder.manifests(), _SAMPLED_SHARDS)):
        rows += manifest.images
        size += sum(entry.bytes for entry in manifest.files)
        sidecars += 1
        sidecar_bytes += folder.size(f"shards/{manifest.shard}.json") or 0
        for entry in manifest.files if number < _SAMPLED_FOOTERS else ():
            whole += entry.bytes
            with folder.open(entry.path) as file:
                images += _image_column_bytes(pq.read_metadata(file))
    per_row = size / rows if rows else 0.0
    return _Storage(
        with_images=per_row,
        without_images=per_row * (1 - images / whole) if whole else 0.0,
        sidecar=sidecar_bytes / sidecars if sidecars else 0.0,
    )


def _image_column_bytes(footer: pq.FileMetaData) -> int:
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(column.total_compressed_size for column in columns if column.path_in_schema.startswith("images."))


def _assumed_storage(found: _Input, work: Workload, images_per_sample: float) -> _Storage:
    row = _ROW_BYTES + _BYTES_PER_TOKEN * work.output_tokens / work.images
    image = images_per_sample * (_IMAGE_BYTES if found.image_bytes is None else found.image_bytes)
    return _Storage(with_images=row + image, without_images=row, sidecar=_SIDECAR_BYTES)


def _hours(images: int, rate: _Rate | None, gpus: int = 1) -> list[float] | None:
    """The least and the most hours."""
    if rate is None:
        return None
    return [round(images / fast / gpus / 3600, 4) for fast in (rate.high, rate.low)]


def _price(
    images: int,
    work: Workload,
    rate: _Rate | None,
    gpu_hour: float | None,
    price_input: float | None,
    price_output: float | None,
) -> dict[str, Any]:
    price: dict[str, Any] = {}
    if gpu_hour is not None:
        if rate is None:
            raise UsageError(f"--gpu-hour-price {gpu_hour:g} needs GPU hours: give --gpu, --rate or --from.")
        price["gpus"] = [round(images / fast / 3600 * gpu_hour, 2) for fast in (rate.high, rate.low)]
    if (price_input is None) != (price_output is None):
        raise UsageError("--price-input and --price-output: give both, of a million tokens.")
    if price_input is not None and price_output is not None:
        tokens = work.prompt_tokens * price_input + work.output_tokens * price_output
        price["tokens"] = round(tokens / _MILLION, 2)
    return price


def _text(figures: Mapping[str, Any]) -> str:
    storage, price = figures["storage"], figures["price"]
    lines = [
        ("images", f"{figures['images']:,}"),
        ("shards", f"{figures['shards']:,} of at most {figures['shard_size']:,} images, each with a small JSON file"),
        *([("images in a dialogue", f"{figures['images_per_sample']:g}")] if "images_per_sample" in figures else []),
        ("requests", f"{figures['requests']:,}{_with_fallback(figures)}"),
        ("prompt tokens", f"{figures['prompt_tokens']:,} ({figures['tokens_basis']})"),
        ("answer tokens", f"{figures['output_tokens']:,}"),
    ]
    if rate := figures["images_per_second_per_gpu"]:
        lines.append(("images/s of a GPU", f"{_range(rate)} ({figures['rate_basis']})"))
        lines.append(("GPU hours", _range(figures["gpu_hours"])))
        lines.append(("hours", f"{_range(figures['wall_hours'])} on {_gpus(figures['gpus'])}"))
    else:
        lines.append(("GPU hours", "unknown: give --gpu, --rate, or --from a run"))
    if found := figures.get("speed"):
        lines.append(
            ("GPU memory holds", f"{_dialogues(found)} at the same time (cache of {found['kv_cache_tokens']:,} tokens)")
        )
    lines += [
        ("storage", f"{_bytes(storage['with_images_bytes'])} with images ({storage['basis']})"),
        ("", f"{_bytes(storage['without_images_bytes'])} without images"),
        ("JSON of shards", f"{storage['sidecars']:,}, {_bytes(storage['sidecar_bytes'])}"),
    ]
    if "gpus" in price:
        lines.append(("price of GPUs", _range(price["gpus"])))
    if "tokens" in price:
        lines.append(("price of tokens", f"{price['tokens']:,.2f}"))
    return "\n".join(f"{name:<20} {visible(value)}" for name, value in lines)


def _with_fallback(figures: Mapping[str, Any]) -> str:
    if "fallback" not in figures:
        return ""
    share = f"{figures['fallback_share']:.2%}".replace(".00%", "%")
    return f" (with the fallback {figures['fallback']} for {share} of the images: --fallback-share)"


def _dialogues(speed: Mapping[str, Any]) -> str:
    return count_of(speed["dialogues_in_flight"], "dialogue", grouped=True)


def _gpus(count: int) -> str:
    return count_of(count, "GPU", grouped=True)


def _range(bounds: list[float]) -> str:
    low, high = (f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in sorted(bounds))
    return low if low == high else f"{low} to {high}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"
