"""The commands that make a dataset: download, run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.core.console import AllowLoopback, Json, print_result
from dialog_gen.core.errors import FailedCheckError
from dialog_gen.core.progress import progress_bars
from dialog_gen.engines.base import ENGINES
from dialog_gen.executors.base import EXECUTORS


def add_generate_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    app.command()(download)
    app.command()(run)


def one_of(names: Sequence[str]) -> str:
    """The names as text, such as "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def download(
    manifest: Annotated[
        str,
        typer.Argument(
            help="A manifest's name (see `dialog-gen manifests`) or TOML file, or a list of images: CSV, TSV, Parquet "
            "or JSON lines with the columns url and caption."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the images and their metadata.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Request failed images again, into new tars; existing tars stay.")
    ] = False,
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
            processes=processes,
            threads=threads,
            timeout=timeout,
            max_bytes=max_bytes,
            allow_loopback=allow_loopback,
            on_progress=on_progress,
        )
    print_result(summary.to_json(), str(summary), json_output)


def run(
    model: Annotated[str, typer.Option(help="Name (see `dialog-gen models`), Hugging Face id or folder.")],
    images: Annotated[str, typer.Option(help="Webdataset tars, image files or Parquet: a folder, glob or fsspec URL.")],
    out: Annotated[str, typer.Option(help="Dataset folder to write, or to resume: local, or an fsspec URL.")],
    protocol: Annotated[
        str | None, typer.Option(help="Name (see `dialog-gen protocols`) or TOML file. Default: the model's own.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help=f"{one_of(ENGINES.names())}. Default: vllm if it is installed and serves the model."),
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of a server, for an engine that uses one.")] = None,
    executor: Annotated[str, typer.Option(help=f"Where shards are worked on: {one_of(EXECUTORS.names())}.")] = "local",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed from which the seed of each image is derived.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the prompts; load no model.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the protocol's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling. Default: the protocol's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per answer. Default: the protocol's.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts per image before it is rejected.")] = 3,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images per shard, the unit that a resumed run makes again.")
    ] = 1024,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Number of requests in the engine at a time.")] = 256,
    max_losses: Annotated[
        float, typer.Option(min=0, max=1, help="Exit 1 if more than this fraction is rejected or unreadable.")
    ] = 0.2,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. Default: the model's.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens of prompt and answer together.")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(min=0.05, max=1, help="Fraction of the GPU's memory for vLLM.")
    ] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs to split the model over.")] = 1,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="vLLM's batch-invariant kernels: the same texts on a rerun.")
    ] = False,
    gates: Annotated[
        str | None, typer.Option(help="Quality gates to apply afterwards, as `dialog-gen gate --gates` does.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Generate a dialogue about every image; run again to resume after an interruption."""
    with progress_bars() as on_progress:
        result = dialog_gen.generate(
            model=model,
            images=images,
            out=out,
            protocol=protocol,
            engine=engine,
            endpoint=endpoint,
            executor=executor,
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
            max_losses=max_losses,
            dtype=dtype,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            deterministic=deterministic,
            gates=gates,
            on_progress=on_progress,
        )
    print_result(result.summary, result.text, json_output and not dry_run)
    if result.problem is not None:
        raise FailedCheckError(result.problem)
