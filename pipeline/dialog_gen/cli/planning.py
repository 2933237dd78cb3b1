"""The commands before a run: plan, tune."""

from typing import Annotated

import typer

import dialog_gen
from dialog_gen.cli.options import MAKING, Images, ImagesPerSample, Model, Protocol, Revision
from dialog_gen.core.console import Json, print_result, say, say_json, say_table
from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.help import command
from dialog_gen.core.progress import progress_bars


class SearchInterruptedError(DialogGenError):
    """Ctrl-C ended a search, whose result was printed."""

    exit_code = 130


class NothingMeasuredError(DialogGenError):
    """No engine started."""

    exit_code = 1


def add_planning_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for function, example in (
        (plan, "dialog-gen plan --model llava-1.5-7b --images 3.3e6 --gpus 8 --gpu H100"),
        (tune, "dialog-gen tune --model llava-1.5-7b --images photos/"),
    ):
        app.command(cls=command(example=example), rich_help_panel=MAKING)(function)


def plan(
    images: Annotated[
        str | None,
        typer.Option(help="Their number, such as 3.3e6, or a source to list. Default: as many as --from has."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name (see `dialog-gen models`), Hugging Face id or folder; loads no weights.")
    ] = None,
    protocol: Protocol = None,
    from_dataset: Annotated[
        str | None, typer.Option("--from", help="A dataset that a run has made, or its run.json: its figures are used.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help="Type of GPU, such as H100, H200 or A100; none for a server's prices alone.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Images per second of one GPU, instead of an estimate.")] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Images per shard. Default: 1024, or --from's.")] = None,
    answer_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean tokens of an answer. Default: 5/8 of the protocol's maximum.")
    ] = None,
    images_per_sample: Annotated[
        str, typer.Option(help="As in `run`: first or all; or the mean number of images in a dialogue, such as 2.5.")
    ] = "first",
    fallback_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Part of the images that the protocol's fallback, if any, is asked about. Default: 0.1.",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="As in `run`: larger images are made smaller. Default: the model's.")
    ] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="As in `run`: fp8 halves the KV cache.")] = None,
    quantization: Annotated[str | None, typer.Option(help="As in `run`: fp8 halves the weights.")] = None,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0, help="Price of one GPU for an hour.")] = None,
    price_input: Annotated[
        float | None, typer.Option(min=0, help="A server's price of a million prompt tokens.")
    ] = None,
    price_output: Annotated[
        float | None, typer.Option(min=0, help="A server's price of a million answer tokens.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Estimate what a run takes: shards, requests, tokens, GPU hours, storage, price. Needs no GPU."""
    with progress_bars() as on_progress:
        estimate = dialog_gen.plan(
            images=images,
            model=model,
            protocol=protocol,
            from_dataset=from_dataset,
            gpus=gpus,
            gpu=gpu,
            rate=rate,
            shard_size=shard_size,
            answer_tokens=answer_tokens,
            images_per_sample=images_per_sample,
            fallback_share=fallback_share,
            max_pixels=max_pixels,
            kv_cache_dtype=kv_cache_dtype,
            quantization=quantization,
            gpu_hour_price=gpu_hour_price,
            price_input=price_input,
            price_output=price_output,
            on_progress=on_progress,
        )
    print_result(estimate.figures, estimate.text, json_output)


def tune(
    model: Model,
    images: Images,
    protocol: Protocol = None,
    engine: Annotated[str | None, typer.Option(help="As in `run`.")] = None,
    images_per_sample: ImagesPerSample = "first",
    seconds: Annotated[float, typer.Option(min=1, help="The search ends after this time.")] = 900,
    revision: Revision = None,
    dtype: Annotated[str | None, typer.Option(help="As in `run`.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="As in `run`.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(min=0.05, max=1, help="As in `run`.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="As in `run`.")] = 1,
    json_output: Json = False,
) -> None:
    """Find the fastest settings of an engine on this GPU and these images, and print the flags for `run`."""
    with progress_bars() as on_progress:
        result = dialog_gen.tune(
            model=model,
            images=images,
            protocol=protocol,
            engine=engine,
            images_per_sample=images_per_sample,
            seconds=seconds,
            revision=revision,
            dtype=dtype,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            on_progress=on_progress,
        )
    if json_output:
        say_json(result.to_json())
    else:
        say_table(*result.table())
        say(result.advice())
    if result.interrupted:
        raise SearchInterruptedError("interrupted: the table holds what was measured.")
    if result.best() is None:
        raise NothingMeasuredError("no engine could be measured; the notes say why.")
