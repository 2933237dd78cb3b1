"""The command-line options that several commands have."""

from typing import Annotated, Literal

import typer

# The headings of the commands in `dialog-gen --help`.
MAKING = "Make a dataset"
LOOKING = "Look at a dataset, check it, improve it"
SHARING = "Join, convert and share datasets"
LISTING = "Lists"

Model = Annotated[str, typer.Option(help="Name (see `dialog-gen models`), Hugging Face id or folder.")]
Images = Annotated[str, typer.Option(help="Webdataset tars, image files or Parquet: a folder, glob or fsspec URL.")]
Protocol = Annotated[
    str | None, typer.Option(help="Name (see `dialog-gen protocols`) or TOML file. Default: the model's own.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N images.")]
Seed = Annotated[int, typer.Option(min=0, help="The seed from which the seed of each image is derived.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy. Default: the protocol's.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling. Default: the protocol's.")]
MaxTokens = Annotated[int | None, typer.Option(help="Maximum tokens per answer. Default: the protocol's.")]
Attempts = Annotated[int, typer.Option(min=1, help="Attempts per image before it is rejected.")]
Structured = Annotated[
    bool, typer.Option("--structured", help="Make the model write lists of pairs as JSON of a schema (vllm, openai).")
]
ImageFormat = Annotated[
    Literal["jpeg", "png"], typer.Option(help="How images are sent that are not sent as they are stored.")
]
PrefixIds = Annotated[
    bool, typer.Option("--prefix-ids", help="Put the path of its file before each id that comes from a column.")
]
ImagesPerSample = Annotated[
    Literal["first", "all"],
    typer.Option(
        help="Images of a sample (of one key in a tar, or of a list in Parquet) that its dialogue is about: the first, "
        "or all, for models that take several."
    ),
]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="Where shards are worked on: local (this process) or ray (a Ray cluster).")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="Address of the Ray cluster, such as 10.0.0.1:6379. Default: RAY_ADDRESS, or else a Ray that is started "
        "here and ends with the command.",
    ),
]
