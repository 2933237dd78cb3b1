"""The commands for batch APIs: batch write, batch read."""

from pathlib import Path
from typing import Annotated

import typer

import dialog_gen
from dialog_gen.cli.options import (
    MAKING,
    Attempts,
    ImageFormat,
    Images,
    ImagesPerSample,
    Limit,
    MaxTokens,
    PrefixIds,
    Protocol,
    Seed,
    Structured,
    Temperature,
    TopP,
)
from dialog_gen.core.console import Json, print_result
from dialog_gen.core.help import command, new_app
from dialog_gen.core.progress import progress_bars


def add_batch_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line, as a group."""
    group = new_app()
    group.command(cls=command(example="dialog-gen batch write --model gpt-4o-mini --images photos/ --out dialogues"))(
        write
    )
    group.command(cls=command(example="dialog-gen batch read dialogues results.jsonl errors.jsonl"))(read)
    app.add_typer(
        group,
        name="batch",
        help="Generate dialogues with the batch API of a cloud: files there and back.",
        rich_help_panel=MAKING,
    )


def write(
    model: Annotated[str, typer.Option(help="The model's name at the cloud.")],
    images: Images,
    out: Annotated[str, typer.Option(help="Dataset folder to write, or to resume, on local disk.")],
    protocol: Protocol = None,
    limit: Limit = None,
    seed: Seed = 0,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    attempts: Attempts = 3,
    structured: Structured = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Images per shard, which is committed as a whole.")] = 1024,
    image_max_side: Annotated[
        int, typer.Option(min=32, help="Larger images are made smaller before they are sent (pixels).")
    ] = 1024,
    image_format: ImageFormat = "jpeg",
    prefix_ids: PrefixIds = False,
    images_per_sample: ImagesPerSample = "first",
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in one file.")] = 50_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of one file.")] = 200_000_000,
    json_output: Json = False,
) -> None:
    """Write files of the requests that have no answer yet; run it again after each `batch read`."""
    with progress_bars() as on_progress:
        written = dialog_gen.batch_write(
            model=model,
            images=images,
            out=out,
            protocol=protocol,
            limit=limit,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            attempts=attempts,
            structured=structured,
            shard_size=shard_size,
            image_max_side=image_max_side,
            image_format=image_format,
            prefix_ids=prefix_ids,
            images_per_sample=images_per_sample,
            max_requests=max_requests,
            max_bytes=max_bytes,
            on_progress=on_progress,
        )
    print_result(written.to_json(), str(written), json_output)


def read(
    out: Annotated[str, typer.Argument(metavar="DIR", help="The dataset folder of `batch write`.")],
    results: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Result and error files of batches, in any order.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Take the results of batches, and commit the shards whose dialogues are complete."""
    with progress_bars() as on_progress:
        result = dialog_gen.batch_read(out, results or [], on_progress=on_progress)
    print_result(result.to_json(), str(result), json_output)
