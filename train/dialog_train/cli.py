"""The command line: `dialog-train SYSTEM --config RECIPE`. It parses, calls the library and prints.

Exit codes: 0 all done; 1 a failed check, such as a loss that is not finite; 2 wrong use; 130 Ctrl-C.
"""

import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dialog_gen.cli.options import ExecutorOption, RayAddress
from dialog_gen.cli.remedies import explained
from dialog_gen.core.console import Json, Version, exit_code, log_to_stderr, print_result, say
from dialog_gen.core.errors import DialogGenError, FailedCheckError, UsageError
from dialog_gen.core.help import command as command_class
from dialog_gen.core.help import new_app
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import progress_bars
from dialog_gen.core.visible import visible_lines
from dialog_train.config import shipped_recipes
from dialog_train.launch import end_launcher, run_processes
from dialog_train.systems.base import SYSTEMS

# Commands import slow packages themselves, so that `dialog-train --help` does not wait for torch.

_ERROR_DELAY_S = 5
_INTERRUPTED = "with --resume auto the same command continues from the newest checkpoint, if any"

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


_EMBED_EXAMPLE = "dialog-train embed --dialogues dialogues --model ViT-B-32 --pretrained openai --out vectors"

app = new_app("training system")


@app.callback()
def common(version: Version = False) -> None:
    """Train CLIP models and text decoders on dialogues."""
    log_to_stderr()


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
        say(f"{result.model}: {count_of(result.steps, 'step')}, {losses}")


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
            example = f"dialog-train {name} --config {name}-shapes --set out=runs/{name} --resume auto"
            app.command(name, cls=command_class(example=example), help=visible_lines(SYSTEMS.get(name).description))(
                _command(name)
            )
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


@app.command("systems", cls=command_class(example="dialog-train systems"))
def list_systems(json_output: Json = False) -> None:
    """List the training systems, including those of other packages."""
    systems = set(SYSTEMS.names())
    known = {name: command.help or "" for command in app.registered_commands if (name := command.name) in systems}
    width = max(map(len, known))
    print_result(known, "\n".join(f"{name:{width}}  {text}" for name, text in known.items()), json_output)


@app.command("recipes", cls=command_class(example="dialog-train recipes"))
def list_recipes(json_output: Json = False) -> None:
    """List the recipes that --config knows by name."""
    known = {name: str(file) for name, file in shipped_recipes().items()}
    width = max(map(len, known))
    lines = (f"{name:{width}}  {recipe_description(Path(file))}".rstrip() for name, file in known.items())
    print_result(known, "\n".join(lines), json_output)


def recipe_description(file: Path) -> str:
    """The first sentence of the comment at the top of a recipe, which may have several lines."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in lines)
    first, stop, _ = text.partition(". ")
    return f"{first}." if stop else first


@app.command("dry-run", cls=command_class(example="dialog-train dry-run --config draft-vit-b-32 --steps 5"))
def dry_run_recipes(
    configs: Annotated[
        list[str],
        typer.Option("--config", metavar="NAME_OR_FILE", help="A recipe; give the option once for each of several."),
    ],
    overrides: Overrides = [],  # noqa: B006 - typer needs a list
    steps: Annotated[int, typer.Option(min=2, help="Steps of each stage.")] = 5,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Largest batch, for a device that is smaller than the recipe's.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Run a few steps with random weights and synthetic data; print peak memory and rate.

    It needs no download and leaves no files. If a recipe fails, the others still run; the exit code is then 1.
    """
    found = [_dry_run(config, overrides, steps, batch_size, alone=len(configs) == 1) for config in configs]
    lines = [line for lines, _ in found for line in lines]
    content = {config: stages for config, (_, stages) in zip(configs, found, strict=True)}
    print_result(content, "\n".join(lines), json_output)
    failed = [config for config, stages in content.items() if stages is None]
    if failed:
        raise FailedCheckError(f"{len(failed)} of {len(configs)} recipes failed: {', '.join(failed)}.")


def _dry_run(
    config: str, overrides: list[str], steps: int, batch_size: int | None, *, alone: bool
) -> tuple[list[str], Any]:
    """Lines for people, and the figures of each stage; None if the recipe failed.

    One of several recipes gets a process of its own, so that its memory is its own.
    """
    if alone:
        from dataclasses import asdict

        from dialog_train.api import load_recipe
        from dialog_train.dry_run import dry_run

        recipe = load_recipe(config, overrides)
        with progress_bars() as on_progress:
            stages = [
                asdict(one) for one in dry_run(recipe, steps=steps, batch_size=batch_size, on_progress=on_progress)
            ]
    else:
        import json
        import subprocess

        words = [sys.executable, "-m", "dialog_train", "dry-run", "--config", config, "--steps", str(steps), "--json"]
        words += [word for override in overrides for word in ("--set", override)]
        words += [] if batch_size is None else ["--batch-size", str(batch_size)]
        ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - this program
        if ended.returncode:
            return [f"{config}: failed"], None
        stages = json.loads(ended.stdout)[config]
    return [_dry_run_line(config, one, len(stages)) for one in stages], stages


def _dry_run_line(config: str, stage: dict[str, Any], stages: int) -> str:
    name = config if stages == 1 else f"{config}, stage {stage['stage']}"
    return (
        f"{name}: {stage['steps']} steps of {stage['batch_size']} on {stage['device']}: "
        f"{stage['peak_bytes'] / 1e9:.1f} GB at most, {stage['pairs_per_s']:.1f} pairs/s"
    )


@app.command("embed", cls=command_class(example=_EMBED_EXAMPLE))
def embed(
    dialogues: Annotated[str, typer.Option(help="Folder or fsspec URL that `dialog-gen run --out` wrote.")],
    model: Annotated[str, typer.Option(help="open_clip's name of a model, or a checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the vectors: a new one, or one to continue.")],
    pretrained: Annotated[str | None, typer.Option(help="Tag of open_clip's, or a safetensors file.")] = None,
    allow_activation_mismatch: Annotated[
        bool, typer.Option("--allow-activation-mismatch", help="Load weights under the wrong activation.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 256,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... Default: all GPUs, or the CPU.")] = "auto",
    crops: Annotated[int, typer.Option(min=0, help="Random crops per image, in addition to the whole image.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that decode images, for each worker. Default: one per CPU core, up to 16; 0 on Ray."
        ),
    ] = None,
    executor: ExecutorOption = "local",
    ray_address: RayAddress = None,
) -> None:
    """Compute the image vectors of a dialogues dataset, once. Trainings compute missing vectors themselves."""
    from time import perf_counter

    import torch

    from dialog_gen.clip.loader import load_clip
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.executors.base import Where
    from dialog_train.data.vectors import DECODERS, all_gpus, decoders_per_gpu, embed_dataset

    dataset, map_shards = DatasetFolder.existing(dialogues), Where(executor, ray_address).map()
    several = all_gpus() if device == "auto" and executor == "local" else None
    if workers is None:
        workers = 0 if map_shards.elsewhere else DECODERS if several is None else decoders_per_gpu()
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
            workers=workers,
            crops=crops,
            map_shards=several or map_shards,
            on_progress=on_progress,
        )
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.lost.items())) or "none"
    say(
        f"{count_of(summary.vectors, 'image vector')} in {out} ({perf_counter() - started:.1f} s; "
        f"there already: {summary.skipped_shards} of {count_of(summary.shards, 'shard')}); lost: {lost}"
    )


@app.command("soup", cls=command_class(example="dialog-train soup run-0/model run-1/model run-2/model --out soup"))
def soup(
    out: Annotated[Path, typer.Option(help="Folder for the new checkpoint.")],
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Checkpoints that were tuned from the same weights; two or more."),
    ] = None,
    checkpoints: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="The same, as an option.")] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Choose checkpoints by held-out data; the default is to use all.")
    ] = False,
    images: Annotated[
        str | None, typer.Option(help="Held-out images with captions: webdataset tars, image files, Parquet.")
    ] = None,
    dialogues: Annotated[str | None, typer.Option(help="Held-out images with captions: a dialogues dataset.")] = None,
) -> None:
    """Write the mean of several checkpoints' weights as a checkpoint (arXiv 2203.05482).

    With --greedy, one checkpoint after another is added, the best first, and stays if it does not lower the score: the
    mean recall at 1 on images and captions that were used neither in training nor in the test set.
    """
    from dialog_train.soups import make_soup

    # In `--checkpoints A B C` the first folder is the option's value; the others are arguments.
    made = make_soup([*(checkpoints or []), *(folders or [])], out, greedy=greedy, images=images, dialogues=dialogues)
    say(f"{out}: the mean of {', '.join(made.ingredients)}")


@app.command("export", cls=command_class(example="dialog-train export runs/draft --out draft-hf"))
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or a training's OUT.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
) -> None:
    """Write a checkpoint as a Hugging Face CLIPModel with its processor and tokenizer.

    transformers and sentence-transformers read the folder. The checkpoint must be a plain CLIP: one image tower and one
    text tower.
    """
    from dialog_train.hf_export import export_checkpoint

    export_checkpoint(checkpoint, out)
    say(f"{out}: a CLIPModel with its processor and tokenizer")


@app.command("push", cls=command_class(example="dialog-train push runs/draft --repo me/draft --results results.json"))
def push(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder, or a training's OUT.")],
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="Model repository on the Hub.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="A results.json of dialog-eval with figures of this checkpoint; give one or more."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier, or the terms in words.")] = None,
    export_hf: Annotated[bool, typer.Option("--export-hf", help="Add the files for transformers' CLIPModel.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace all that the repository holds.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing; write the card to CHECKPOINT/README.md. Needs no token.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub, in one commit, with a card that says data, method and figures."""
    from dialog_train.push import push_checkpoint

    pushed = push_checkpoint(
        checkpoint,
        repo,
        results=results or (),
        licence=licence,
        with_transformers=export_hf,
        private=private,
        message=message,
        replace=replace,
        dry_run=dry_run,
    )
    print_result(asdict(pushed), str(pushed), json_output)


def _is_first() -> bool:
    """Whether this process prints: the only one, or the first of a group."""
    return os.environ.get("RANK", "0") == "0"


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code. `arguments` defaults to those of the process."""
    # Plain lines, because programs read the log too.
    log_to_stderr(plain=True)
    logging.getLogger("dialog_train").setLevel(logging.INFO if _is_first() else logging.WARNING)
    return exit_code(
        partial(app, None if arguments is None else list(arguments), prog_name="dialog-train"),
        interrupted=_INTERRUPTED if _is_first() else None,
        explain=explained,
        before_error=_let_others_report,
        after_error=end_launcher,
    )


def _let_others_report(error: BaseException) -> None:
    """Waits if another process of several may report the error. A launcher ends all processes once one has failed."""
    if isinstance(error, DialogGenError):
        # If all found the same error, the first process reports it.
        time.sleep(0 if _is_first() else _ERROR_DELAY_S)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Perhaps only a lost connection to a process that failed, which reports its own error.
        time.sleep(2 * _ERROR_DELAY_S)


def main() -> None:
    """Runs the command line and exits."""
    sys.exit(run())
