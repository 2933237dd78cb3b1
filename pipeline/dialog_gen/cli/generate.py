"""The commands that make a dataset: download, run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.cli.config import read_config
from dialog_gen.cli.options import (
    MAKING,
    Attempts,
    ImageFormat,
    Images,
    ImagesPerSample,
    Limit,
    MaxTokens,
    Model,
    PrefixIds,
    Protocol,
    RayAddress,
    Revision,
    Seed,
    Structured,
    Temperature,
    TopP,
)
from dialog_gen.core.console import AllowLoopback, Json, print_result
from dialog_gen.core.errors import FailedCheckError
from dialog_gen.core.help import command, left_out
from dialog_gen.core.progress import CHECKING, progress_bars
from dialog_gen.engines.base import ENGINES
from dialog_gen.executors.base import EXECUTORS
from dialog_gen.generation.refusals import STOP_AFTER

_DOWNLOAD_EXAMPLE = """\
dialog-gen download cc3m --out cc3m --limit 10000
dialog-gen download urls.csv --out photos --url-column link"""
_RUN_EXAMPLE = """\
dialog-gen run --model llava-1.5-7b --images photos/ --out dialogues
dialog-gen run --model qwen2.5-vl-3b --images photos/ --out dialogues --gates length,leak,self_consistency
dialog-gen run --model gpt-4o-mini --engine openai --endpoint https://host/v1 --images photos/ --out dialogues
dialog-gen run --config run.toml --limit 100"""
RUN_GROUPS = {
    "What is said": ("protocol", "structured", "temperature", "top_p", "max_tokens", "attempts", "seed", "gates"),
    "Images": ("limit", "images_per_sample", "min_pixels", "max_pixels", "prefix_ids"),
    "Model and engine": (
        "revision", "engine", "dtype", "max_model_len", "max_in_flight", "gpu_memory_utilization",
        "tensor_parallel_size", "kv_cache_dtype", "quantization", "max_num_seqs", "max_num_batched_tokens",
        "deterministic", "engine_timeout",
    ),
    "Many GPUs and machines": ("engines", "frontends", "part", "executor", "ray_address", "shard_size"),
    "Servers": (
        "endpoint", "api_key_env", "image_max_side", "image_format", "max_cost", "price_input", "price_output"
    ),
    "Limits and output": ("max_losses", "keep_going", "gpu_hour_price", "dry_run", "json_output"),
}  # fmt: skip
"""Heading -> the parameters of `run` under it."""


def _use_config(context: typer.Context, config: Path | None) -> Path | None:
    """The settings of the file become the defaults of the flags."""
    if config is not None:
        found = {name: value for name, value in read_config(config, run).items() if name not in left_out(context)}
        context.default_map = {**(context.default_map or {}), **found}
    return config


def add_generate_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    app.command(cls=command(example=_DOWNLOAD_EXAMPLE), rich_help_panel=MAKING)(download)
    app.command(cls=command(example=_RUN_EXAMPLE, groups=RUN_GROUPS, reads_config=True), rich_help_panel=MAKING)(run)


def one_of(names: Sequence[str]) -> str:
    """The names as text, such as "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def download(
    manifest: Annotated[
        str,
        typer.Argument(
            help="A manifest's name (see `dialog-gen manifests`) or TOML file, or a list of URLs: .csv, .tsv, .jsonl "
            "(also .gz), .parquet, or .txt with one URL per line."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the images and their metadata.")],
    limit: Limit = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Request failed images again, into new tars; existing tars stay.")
    ] = False,
    url_column: Annotated[
        str | None, typer.Option(help="The list's column of URLs. Default: url, image_url or img_url, in any case.")
    ] = None,
    caption_column: Annotated[
        str | None,
        typer.Option(
            help='The list\'s column of captions, "" for none. Default: caption, text, alt or top_caption, in any case.'
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split. Default: the manifest's first.")] = None,
    seed: Annotated[int, typer.Option(help="A different seed draws different scenes (shapes only).")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one per CPU core.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Number of requests at a time in each process.")] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without data from a server; a request may take three times as long.")
    ] = 10,
    max_bytes: Annotated[int, typer.Option(min=1, help="Maximum size of an image file in bytes.")] = 32 << 20,
    allow_loopback: AllowLoopback = False,
    json_output: Json = False,
) -> None:
    """Download an image set; run again to resume after an interruption."""
    with progress_bars() as on_progress:
        summary = dialog_gen.download_images(
            manifest,
            out,
            split=split,
            limit=limit,
            seed=seed,
            retry_failed=retry_failed,
            url_column=url_column,
            caption_column=caption_column,
            processes=processes,
            threads=threads,
            timeout=timeout,
            max_bytes=max_bytes,
            allow_loopback=allow_loopback,
            on_progress=on_progress,
        )
    print_result(summary.to_json(), str(summary), json_output)


def run(
    model: Model,
    images: Images,
    out: Annotated[str, typer.Option(help="Dataset folder to write, or to resume: local, or an fsspec URL.")],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            is_eager=True,
            callback=_use_config,
            help="TOML file with flags, such as `dialog-gen init` writes; flags given here override it, and --no-FLAG "
            "leaves out what it says of a flag, such as --no-limit.",
        ),
    ] = None,
    protocol: Protocol = None,
    engine: Annotated[
        str | None,
        typer.Option(help=f"{one_of(ENGINES.names())}. Default: vllm if it is installed and serves the model."),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Address of a server, for the engine openai, such as http://host:8000/v1; may be repeated.",
        ),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(help="The environment variable with the server's key.")
    ] = "OPENAI_API_KEY",
    image_max_side: Annotated[
        int, typer.Option(min=32, help="Larger images are made smaller before they are sent to a server (pixels).")
    ] = 1024,
    image_format: ImageFormat = "jpeg",
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Stop before the requests of this run cost more. Needs both prices.")
    ] = None,
    price_input: Annotated[float | None, typer.Option(min=0, help="Price of a million input tokens.")] = None,
    price_output: Annotated[float | None, typer.Option(min=0, help="Price of a million output tokens.")] = None,
    executor: Annotated[str, typer.Option(help=f"Where shards are worked on: {one_of(EXECUTORS.names())}.")] = "local",
    ray_address: RayAddress = None,
    frontends: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes that prepare requests for each engine. Default: 1, and on GPUs one more "
            "whenever all of them are busy and the engine has room.",
        ),
    ] = None,
    engines: Annotated[
        int | None,
        typer.Option(
            min=1, help="Engines at a time, each in a process of its own. Default: one for each visible GPU (or group)."
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(help="I/N: only the I-th (from 0) of N parts of the shards; the parts can run at the same time."),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the prompts; load no model.")] = False,
    revision: Revision = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    attempts: Attempts = 3,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images per shard, the unit that a resumed run makes again.")
    ] = 1024,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Number of requests in the engine at a time.")] = 256,
    engine_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds without any answer after which a hanging engine is killed; its start may take four times.",
        ),
    ] = 1800,
    max_losses: Annotated[
        float, typer.Option(min=0, max=1, help="Exit 1 if more than this fraction is rejected or unreadable.")
    ] = 0.2,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            help=f"Go on if the first {STOP_AFTER} images are all refused for one reason; by default the run ends.",
        ),
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. Default: the model's.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens of prompt and answer together.")
    ] = None,
    min_pixels: Annotated[
        int | None, typer.Option(min=1, help="Images with fewer pixels are made larger for the model.")
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Images with more pixels are made smaller: fewer tokens. Default: the model's."),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(min=0.05, max=1, help="Fraction of the GPU's memory for vLLM.")
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs to split the model over.")] = 1,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="vLLM's batch-invariant kernels: the same texts on a rerun.")
    ] = False,
    structured: Structured = False,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="Type of vLLM's KV cache, such as fp8; changes the texts. Default: the model's.")
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(help="How vLLM quantises the weights while it loads them, such as fp8; changes the texts."),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Maximum requests in one step of vLLM. Default: --max-in-flight.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens in one step of vLLM. Default: 8192, or the context.")
    ] = None,
    gates: Annotated[
        str | None, typer.Option(help="Quality gates to apply afterwards, as `dialog-gen gate --gates` does.")
    ] = None,
    prefix_ids: PrefixIds = False,
    images_per_sample: ImagesPerSample = "first",
    gpu_hour_price: Annotated[
        float | None, typer.Option(min=0, help="Price of an hour of one GPU: the summary says the cost of the images.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Generate a dialogue about every image; run again to resume after an interruption."""
    with progress_bars() as on_progress:
        on_progress(CHECKING, 0, 1)
        result = dialog_gen.generate(
            model=model,
            images=images,
            out=out,
            protocol=protocol,
            engine=engine,
            endpoint=endpoint or None,
            api_key_env=api_key_env,
            image_max_side=image_max_side,
            image_format=image_format,
            max_cost=max_cost,
            price_input=price_input,
            price_output=price_output,
            executor=executor,
            ray_address=ray_address,
            engines=engines,
            frontends=frontends,
            part=part,
            limit=limit,
            seed=seed,
            dry_run=dry_run,
            revision=revision,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            attempts=attempts,
            shard_size=shard_size,
            max_in_flight=max_in_flight,
            engine_timeout=engine_timeout,
            max_losses=max_losses,
            keep_going=keep_going,
            dtype=dtype,
            max_model_len=max_model_len,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            deterministic=deterministic,
            structured=structured,
            kv_cache_dtype=kv_cache_dtype,
            quantization=quantization,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            gates=gates,
            prefix_ids=prefix_ids,
            images_per_sample=images_per_sample,
            gpu_hour_price=gpu_hour_price,
            on_progress=on_progress,
        )
    print_result(result.summary, result.text, json_output and not dry_run)
    if result.problem is not None:
        raise FailedCheckError(result.problem)
