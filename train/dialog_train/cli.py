"""The command line: `dialog-train SYSTEM --config RECIPE`. It parses, calls the library and prints.

Exit codes: 0 all done; 1 a failed check, such as a loss that is not finite; 2 wrong use; 130 Ctrl-C.
"""

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dialog_gen.cli.remedies import explained
from dialog_gen.core.console import Json, Version, begin, group_of, print_result
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.progress import progress_bars
from dialog_train.config import shipped_recipes
from dialog_train.launch import end_launcher, run_processes
from dialog_train.systems.base import SYSTEMS

# Commands import slow packages themselves, so that `dialog-train --help` does not wait for torch.

_INTERRUPTED = 130
_ERROR_DELAY_S = 5

Config = Annotated[
    str, typer.Option(metavar="NAME_OR_FILE", help="A recipe's name (see `dialog-train recipes`) or TOML file.")
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, as in --set optim.lr=1e-4.")
]
Resume = Annotated[
    Literal["never", "auto"], typer.Option(help="auto: continue from the newest checkpoint, if there is one.")
]
Processes = Annotated[
    int, typer.Option(min=1, help="Number of processes on this machine; for several machines use accelerate launch.")
]


app = typer.Typer(
    cls=group_of("training system"),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def common(context: typer.Context, version: Version = False) -> None:
    """Train CLIP models and text decoders on dialogues."""
    begin(context, version)


def _train(system: str, config: str, overrides: list[str], resume: Any, processes: int, switches: list[str]) -> None:
    if processes > 1:
        settings = [word for override in overrides for word in ("--set", override)]
        flags = [f"--{switch}" for switch in switches]
        code = run_processes(processes, [system, "--config", config, *settings, "--resume", resume, *flags])
        raise typer.Exit(code)

    from dialog_train.api import train

    with progress_bars() as on_progress:
        if sys.stderr.isatty():
            logging.getLogger("dialog_train.loop.points").setLevel(logging.WARNING)
        result = train(
            config,
            system=system,
            overrides=overrides,
            resume=resume,
            switches=switches,
            on_progress=on_progress,
        )
    if _is_first():
        losses = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
        typer.echo(f"{result.model}: {result.steps} steps, {losses}")


def _command(system: str) -> Callable[..., None]:
    """Builds the command that trains a system, with the options of all systems and the system's own switches."""
    own = SYSTEMS.get(system).switches

    def command(config: str, overrides: list[str], resume: str, processes: int, **given: bool) -> None:
        switches = [switch for switch in own if given[switch.replace("-", "_")]]
        _train(system, config, overrides, resume, processes, switches)

    # Typer reads the options from the signature.
    options: dict[str, tuple[Any, Any]] = {
        "config": (Config, inspect.Parameter.empty),
        "overrides": (Overrides, []),
        "resume": (Resume, "never"),
        "processes": (Processes, 1),
    }
    options |= {
        switch.replace("-", "_"): (Annotated[bool, typer.Option(f"--{switch}", help=text)], False)
        for switch, text in own.items()
    }
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in options.items()
        ]
    )
    command.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    return command


def _add_systems() -> None:
    """Adds a command for each training system. The command of a system that cannot be imported reports the error."""
    for name in SYSTEMS.names():
        try:
            app.command(name, help=SYSTEMS.get(name).description)(_command(name))
        except UsageError as error:
            app.command(
                name,
                help="Cannot be imported: call it to see why.",
                context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
            )(_failing(error))


def _failing(error: UsageError) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


_add_systems()


@app.command("systems")
def list_systems(json_output: Json = False) -> None:
    """List the training systems, including those of other packages."""
    systems = set(SYSTEMS.names())
    known = {name: command.help or "" for command in app.registered_commands if (name := command.name) in systems}
    width = max(map(len, known))
    print_result(known, "\n".join(f"{name:{width}}  {text}" for name, text in known.items()), json_output)


@app.command("recipes")
def list_recipes(json_output: Json = False) -> None:
    """List the recipes that --config knows by name."""
    known = {name: str(file) for name, file in shipped_recipes().items()}
    width = max(map(len, known))
    lines = (f"{name:{width}}  {_first_comment(Path(file))}".rstrip() for name, file in known.items())
    print_result(known, "\n".join(lines), json_output)


def _first_comment(file: Path) -> str:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


@app.command("embed")
def embed(
    dialogues: Annotated[str, typer.Option(help="Folder or fsspec URL that `dialog-gen run --out` wrote.")],
    model: Annotated[str, typer.Option(help="open_clip's name of a model, or a checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the vectors: a new one, or one to continue.")],
    pretrained: Annotated[str | None, typer.Option(help="Tag of open_clip's, or a safetensors file.")] = None,
    allow_activation_mismatch: Annotated[
        bool, typer.Option("--allow-activation-mismatch", help="Load weights under the wrong activation.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")] = "auto",
    crops: Annotated[int, typer.Option(min=0, help="Random crops per image, in addition to the whole image.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode images. Default: one per CPU core, up to 16.")
    ] = None,
) -> None:
    """Compute the image vectors of a dialogues dataset, once. Trainings compute missing vectors themselves."""
    from time import perf_counter

    import torch

    from dialog_gen.clip.loader import load_clip
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_train.data.vectors import DECODERS, embed_dataset

    dataset = DatasetFolder.existing(dialogues)
    clip = load_clip(model, pretrained, allow_activation_mismatch=allow_activation_mismatch)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    started = perf_counter()
    with progress_bars() as on_progress:
        summary = embed_dataset(
            dataset,
            clip,
            out,
            batch_size=batch_size,
            device=device,
            workers=DECODERS if workers is None else workers,
            crops=crops,
            on_progress=on_progress,
        )
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.lost.items())) or "none"
    typer.echo(
        f"{summary.vectors} image vectors in {out} ({perf_counter() - started:.1f} s; "
        f"{summary.skipped_shards} of {summary.shards} shards were there); lost: {lost}"
    )


@app.command("soup")
def soup(
    out: Annotated[Path, typer.Option(help="Folder for the new checkpoint.")],
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR...", help="Checkpoints that were tuned from the same weights; two or more."),
    ] = None,
    checkpoints: Annotated[list[Path] | None, typer.Option(metavar="DIR...", help="The same, as an option.")] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Choose checkpoints by held-out data; the default is to use all.")
    ] = False,
    images: Annotated[
        str | None, typer.Option(help="Held-out images with captions: webdataset tars, image files, Parquet.")
    ] = None,
    dialogues: Annotated[str | None, typer.Option(help="Held-out images with captions: a dialogues dataset.")] = None,
) -> None:
    """Write the mean of several checkpoints' weights as a checkpoint (arXiv 2203.05482).

    --greedy adds one checkpoint after another, the best first, and keeps those that do not lower the score: the mean
    recall at 1 on images and captions that were used neither in training nor in the test set.
    """
    from dialog_train.soups import make_soup

    # In `--checkpoints A B C` the first folder is the option's value; the others are arguments.
    made = make_soup([*(checkpoints or []), *(folders or [])], out, greedy=greedy, images=images, dialogues=dialogues)
    typer.echo(f"{out}: the mean of {', '.join(made.ingredients)}")


def _is_first() -> bool:
    """Whether this process prints: the only one, or the first of a group."""
    return os.environ.get("RANK", "0") == "0"


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code. `arguments` defaults to those of the process."""
    # Plain lines, because programs read the log too.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dialog_train").setLevel(logging.INFO if _is_first() else logging.WARNING)
    try:
        app(None if arguments is None else list(arguments), prog_name="dialog-train")
    except DialogGenError as error:
        if not _is_first():
            # A launcher ends all processes once one has failed. If all found the same error, the first one reports it.
            time.sleep(_ERROR_DELAY_S)
        typer.echo(f"error: {explained(error)}", err=True)
        end_launcher()
        return error.exit_code
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if code == _INTERRUPTED and _is_first():
            typer.echo(
                "interrupted: with --resume auto the same command continues from the newest checkpoint, if any",
                err=True,
            )
        return code
    return 0


def main() -> None:
    """Runs the command line and exits."""
    sys.exit(run())
