"""The command line: `dialog-gen COMMAND`. Results go to stdout, everything else to stderr.

Exit codes: 0 all done; 1 finished with losses over the allowed fraction, or a failed check; 2 wrong use; 130 Ctrl-C.
"""

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from dialog_gen.cli.publish import COMMANDS as SHARE_COMMANDS
from dialog_gen.core.console import DatasetOption, Json, Version, begin, print_result, progress_bar, run_app
from dialog_gen.core.errors import FailedCheckError, UsageError, did_you_mean

if TYPE_CHECKING:
    from dialog_gen.dataset.folder import DatasetFolder, Store
    from dialog_gen.gates.apply import GatePass
    from dialog_gen.inspect.statistics import Stats

# What a command needs beyond this is imported inside it: `dialog-gen --help` should not wait for torch.

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_log = logging.getLogger(__name__)


def main() -> None:
    """Runs the command line and exits."""
    run_app(app, interrupted="what is finished is kept, the same command goes on from there")


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context,
    version: Version = False,
) -> None:
    """Images become question-answer dialogues, held by a vision-language model and stored as Parquet."""
    begin(context, version)
    logging.getLogger("dialog_gen").setLevel(logging.INFO)


@app.command()
def download(
    manifest: Annotated[
        str,
        typer.Argument(
            help="A manifest's name (see `dialog-gen manifests`) or TOML file, or a list of images: CSV, TSV, Parquet "
            "or JSON lines with the columns url and caption."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the images and what belongs to them.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for what failed, into new tars; done ones stay.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Which split. Default: the manifest's first.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other scenes (shapes only).")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one a CPU core.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Requests under way at a time, in each process.")] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds a server may be silent; three times that in all.")
    ] = 10,
    max_bytes: Annotated[int, typer.Option(min=1, help="The largest image to accept, as it is sent.")] = 32 << 20,
    allow_loopback: Annotated[
        bool, typer.Option("--allow-loopback", help="Also fetch from servers on this machine.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Download an image set; run again to go on after an interruption."""
    from dialog_gen.core.progress import progress_bars
    from dialog_gen.download.http import FetchPolicy
    from dialog_gen.download.manifests import DownloadOptions, load_manifest
    from dialog_gen.download.run import download as download_images

    policy = FetchPolicy(allow_loopback=allow_loopback, max_bytes=max_bytes, timeout_s=timeout, deadline_s=3 * timeout)
    with progress_bars() as on_progress:
        summary = download_images(
            load_manifest(manifest),
            out,
            split=split,
            limit=limit,
            seed=seed,
            retry_failed=retry_failed,
            options=DownloadOptions(policy=policy, threads=threads, processes=processes or os.cpu_count() or 1),
            on_progress=on_progress,
        )
    print_result(summary.to_json(), str(summary), json_output)


@app.command()
def run(
    model: Annotated[str, typer.Option(help="Name (see `dialog-gen models`), Hugging Face id or folder.")],
    images: Annotated[str, typer.Option(help="Webdataset tars, image files or Parquet: a folder, glob or fsspec URL.")],
    out: Annotated[str, typer.Option(help="Dataset folder to write or go on with: local, or an fsspec URL.")],
    protocol: Annotated[
        str | None, typer.Option(help="Name (see `dialog-gen protocols`) or TOML file. Default: the model's own.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="vllm or transformers. Default: vllm where it is installed.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Every image's own seed derives from it.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and prompts; load no model.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the protocol's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling. Default: the protocol's.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens an answer. Default: the protocol's.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Tries for an image before it is rejected.")] = 3,
    shard_size: Annotated[int, typer.Option(min=1, help="Images a shard, the unit that is redone.")] = 1024,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Requests kept in the engine.")] = 256,
    max_losses: Annotated[
        float, typer.Option(min=0, max=1, help="Exit 1 if more than this fraction is rejected or unreadable.")
    ] = 0.2,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. Default: the model's.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
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
    """Hold a dialogue about every image; run again to go on after an interruption."""
    from dialog_gen.dataset.folder import check_config, open_store
    from dialog_gen.engines.base import ENGINES, EngineOptions, engine_starter
    from dialog_gen.gates.apply import GatePass, ungated_images
    from dialog_gen.gates.report import report_text
    from dialog_gen.gates.settings import load_gates
    from dialog_gen.generation.plan import make_plan

    if engine is not None and engine not in ENGINES:
        raise UsageError(f"--engine {engine}: {did_you_mean(engine, ENGINES)}.")
    plan = make_plan(
        model=model,
        images=images,
        out=out,
        revision=revision,
        protocol=protocol,
        engine=cast("Any", engine),
        sampling={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens},
        seed=seed,
        attempts=attempts,
        shard_size=shard_size,
        limit=limit,
        options=EngineOptions(
            max_in_flight=max_in_flight,
            max_model_len=max_model_len,
            dtype=dtype,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            deterministic=deterministic,
            # Only while an answer is sampled can it be told how likely it was.
            logprobs=gates is not None and load_gates(gates).logprob is not None,
        ),
        download=not dry_run,
    )
    # A local model by its path: its name alone would not lead back to it.
    gate_pass = GatePass.of(gates, {**plan.config(), "model": model}) if gates is not None else None
    start_engine = engine_starter(plan.engine, plan.model, plan.interview.sampling, plan.options)
    if engine is None and plan.engine == "transformers" and plan.model.served_by_vllm:
        _log.warning("vllm is not installed: going on with the much slower transformers engine (extra: vllm or cpu)")
    if dry_run:
        check_config(out, plan.config())
        typer.echo(plan.describe())
        return
    shards = plan.shards()
    from dialog_gen.dataset.verify import totals
    from dialog_gen.generation.progress import RunProgress
    from dialog_gen.generation.runner import Runner
    from dialog_gen.generation.summary import run_report, summary_text

    with open_store(out, plan.config()) as store:
        with RunProgress(plan.shards) as progress:
            runner = Runner(
                store=store,
                interview=plan.interview,
                model=plan.model,
                max_in_flight=max_in_flight,
                on_row=progress.row,
                on_skip=progress.skip,
                on_shard=progress.shard,
            )
            result = runner.run(shards, start_engine)
        for name in result.redone:
            _log.warning("shard %s was made anew: a larger --limit, changed input, or damaged files", name)
        dataset = totals(store)
        report = run_report(plan, result, dataset)
        if result.images or not store.exists("run.json"):
            store.put_json("run.json", report)
        text = summary_text(out, report, result)
        if gate_pass is not None:
            report["gates"] = _apply_gates(gate_pass, store)
            text += f"\n\n{report_text(out, report['gates'])}"
        elif unseen := ungated_images(store):
            _log.warning("%d images have not been seen by the gates: `dialog-gen gate %s` goes over all", unseen, out)
    print_result(report, text, json_output)
    lost = dataset.rejected + dataset.unreadable
    if lost > max_losses * dataset.images:
        raise FailedCheckError(
            f"{lost} of {dataset.images} images gave no dialogue, more than --max-losses {max_losses} allows; "
            f"{out}/rejects holds each with its reason."
        )


@app.command()
def status(directory: DatasetOption, json_output: Json = False) -> None:
    """Say what a dataset folder holds, by its sidecars; reads no row."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.dataset.verify import totals

    folder = DatasetFolder.existing(directory)
    found = totals(folder)
    lines = [f"{directory}: {found.images} images in {found.shards} finished shards"]
    for name in ("accepted", "rejected", "unreadable"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.reasons.get(name, {}).items())
        lines.append(f"  {name:<10} {getattr(found, name):>9}{reasons and f'   {reasons}'}")
    config = folder.config()
    lines += [f"  {key}: {config[key]}" for key in ("model", "protocol", "engine", "seed", "images") if key in config]
    lines += [f"  {problem}" for problem in found.problems]
    content = {key: value for key, value in asdict(found).items() if key not in ("problem_count", "pairs")}
    print_result({**content, "config": config}, "\n".join(lines), json_output)


@app.command()
def verify(directory: DatasetOption, json_output: Json = False) -> None:
    """Read a dataset again and check checksums, schema, counts, ids and image hashes; exit 1 if anything is wrong."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.dataset.verify import verify as verify_folder

    folder = DatasetFolder.existing(directory)
    with progress_bar() as progress:
        task = progress.add_task("verifying shards", total=len(folder.shards()))
        verdict = verify_folder(folder, on_shard=lambda: progress.advance(task))
    text = "\n".join(
        [
            *verdict.problems,
            f"{directory}: {verdict.accepted} accepted + {verdict.rejected} rejected + {verdict.unreadable} unreadable "
            f"= {verdict.images} images in {verdict.shards} shards, {verdict.pairs} question-answer pairs: "
            + ("all as promised" if not verdict.problem_count else f"{verdict.problem_count} problems"),
        ]
    )
    print_result(asdict(verdict), text, json_output)
    if verdict.problem_count:
        raise typer.Exit(1)


@app.command()
def stats(directory: DatasetOption, json_output: Json = False) -> None:
    """Read a dataset's texts and tell what is asked and answered, how long texts are, and what gates and losses say."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.inspect.table import stats_text

    folder = DatasetFolder.existing(directory)
    found = _collect_stats(folder)
    print_result(asdict(found), f"{directory}: {stats_text(found)}", json_output)


@app.command()
def report(
    directory: DatasetOption,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    samples: Annotated[int, typer.Option(min=0, help="Images in the gallery, drawn uniformly.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
    max_mb: Annotated[float, typer.Option(min=0.1, help="Size of the page; thumbnails adapt to it.")] = 20,
) -> None:
    """Show a dataset as one HTML page that needs nothing else: figures, distributions and a gallery to search."""
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_gen.inspect.page import check_out, write_report

    folder = DatasetFolder.existing(directory)
    check_out(out)
    found = _collect_stats(folder)
    with progress_bar() as progress:
        task = progress.add_task("images", total=min(samples, found.accepted))
        written = write_report(
            folder, found, out, samples=samples, seed=seed, max_mb=max_mb, on_row=lambda: progress.advance(task)
        )
    typer.echo(f"{written}\n{out}")


def _collect_stats(folder: "DatasetFolder") -> "Stats":
    from dialog_gen.inspect.statistics import collect

    with progress_bar() as progress:
        task = progress.add_task("reading shards", total=len(folder.shards()))
        return collect(folder, on_shard=lambda: progress.advance(task))


@app.command()
def gate(
    directory: DatasetOption,
    gates: Annotated[
        str, typer.Option(help="text (all that need no model), all, names with commas between, or a TOML file.")
    ] = "text",
    json_output: Json = False,
) -> None:
    """Score every question-answer pair and mark what is doubtful; deletes nothing, replaces what gates said before."""
    from dialog_gen.dataset.folder import DatasetFolder, open_store
    from dialog_gen.gates.apply import GatePass
    from dialog_gen.gates.report import report_text

    config = DatasetFolder.existing(directory).config()
    gate_pass = GatePass.of(gates, config)
    with open_store(directory, config) as store:
        report = _apply_gates(gate_pass, store)
    print_result(report, report_text(directory, report), json_output)


for command in SHARE_COMMANDS:
    app.command()(command)


@app.command()
def models(json_output: Json = False) -> None:
    """List the models known by name."""
    from dialog_gen.models.registry import MODELS

    _print_table([{"name": name, **asdict(entry)} for name, entry in MODELS.items()], json_output)


@app.command()
def protocols(json_output: Json = False) -> None:
    """List the protocols that come with the package."""
    from dialog_gen.protocols.protocol import load_protocol, shipped_protocols

    loaded = [load_protocol(name) for name in shipped_protocols()]
    rows = [{"name": p.name, "turns": len(p.turns), "pairs": p.pairs, "description": p.description} for p in loaded]
    _print_table(rows, json_output)


@app.command()
def gates(json_output: Json = False) -> None:
    """List the quality gates: what their scores say, and beyond which limits a pair is marked unless told otherwise."""
    from dialog_gen.dataset.record import GATES
    from dialog_gen.gates.settings import load_gates

    rows = [
        {"name": name, "limits": limits.limits_text(), "settings": limits.model_dump(), "description": GATES[name]}
        for name, limits in load_gates("all").chosen().items()
    ]
    _print_table(rows, json_output)


@app.command()
def manifests(json_output: Json = False) -> None:
    """List the image sets that can be downloaded."""
    from dialog_gen.download.manifests import load_manifest, shipped_manifests

    loaded = [load_manifest(name) for name in shipped_manifests()]
    if json_output:
        typer.echo(json.dumps([{**m.model_dump(), "size_bytes": m.size_bytes or None} for m in loaded], indent=2))
        return
    rows = [
        {
            "name": m.name,
            "images": ", ".join(f"{split} {rows:,}" for split, rows in m.rows.items()),
            "size": f"{m.size_bytes / 1e9:.1f} GB" if m.size_bytes else "",
            "licence": m.licence,
            "description": m.description,
        }
        for m in loaded
    ]
    _print_table(rows, json_output)


def _apply_gates(gate_pass: "GatePass", store: "Store") -> dict[str, Any]:
    with progress_bar() as progress:
        task = progress.add_task("quality gates", total=gate_pass.rows_to_go(store))
        return gate_pass.apply(store, lambda rows: progress.advance(task, rows))


def _print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    shown = ("name", "source", "turns", "pairs", "images", "size", "protocol", "licence", "limits", "description")
    columns = [key for key in shown if rows and key in rows[0]]
    # As wide as it needs to be where nobody watches: a table that is piped should not be cut.
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 1000, soft_wrap=False).print(table)


if __name__ == "__main__":
    main()
