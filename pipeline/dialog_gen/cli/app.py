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

from dialog_gen.cli.publish import add_publish_commands
from dialog_gen.cli.remedies import explained
from dialog_gen.core.console import DatasetOption, Json, Version, begin, print_result, progress_bar, run_app
from dialog_gen.core.errors import FailedCheckError, UsageError, did_you_mean
from dialog_gen.core.progress import progress_bars

if TYPE_CHECKING:
    from dialog_gen.dataset.upgrade import UpgradeSummary

# What a command needs beyond this is imported inside it: `dialog-gen --help` should not wait for torch.

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

_log = logging.getLogger(__name__)


def main() -> None:
    """Runs the command line and exits."""
    run_app(app, interrupted="what is finished is kept, the same command goes on from there", explain=explained)


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
    from dialog_gen.core.files import writing
    from dialog_gen.download.archives import fetch_files
    from dialog_gen.download.fetch import FetchPolicy
    from dialog_gen.download.folder import KEPT
    from dialog_gen.download.job import DownloadOptions
    from dialog_gen.download.manifests import EmbeddedSource, UrlSource, load_manifest
    from dialog_gen.download.provenance import note_manifest
    from dialog_gen.download.url_list import prepare_url_list
    from dialog_gen.download.url_lists import download_url_list, list_request
    from dialog_gen.shapes.fetch import download_shapes
    from dialog_gen.shapes.scenes import Split

    chosen = load_manifest(manifest)
    split = chosen.splits[0] if split is None else split
    if split not in chosen.splits:
        raise UsageError(f"{chosen.name} has no split {split!r}: {did_you_mean(split, chosen.splits)}.")
    source = chosen.source
    if seed and not isinstance(source, EmbeddedSource):
        raise UsageError(f"--seed {seed}: {chosen.name} is not drawn; leave it out.")
    if retry_failed and not isinstance(source, UrlSource):
        raise UsageError(
            f"--retry-failed: {chosen.name} is no list of URLs; leave it out, the same command fetches what is missing."
        )
    policy = FetchPolicy(allow_loopback=allow_loopback, max_bytes=max_bytes, timeout_s=timeout, deadline_s=3 * timeout)
    if isinstance(source, EmbeddedSource):
        rows = limit or chosen.rows.get(split)
        if rows is None:
            raise UsageError(f"{chosen.name} does not say how many images its split {split!r} has: give a --limit.")
        summary = download_shapes(out, split=cast("Split", split), seed=seed, limit=rows)
        content = summary.to_json()
    elif isinstance(source, UrlSource):
        summary = download_url_list(
            lambda into: prepare_url_list(source, split, into, limit, out=out, policy=policy),
            out,
            request=list_request(chosen.name, source, split, limit),
            options=DownloadOptions(policy=policy, threads=threads, processes=processes or os.cpu_count() or 1),
            retry_failed=retry_failed,
        )
        content = summary.to_json()
    else:
        summary = fetch_files(chosen, split, out, policy, limit)
        content = {**asdict(summary), "out": str(out)}
    with writing(out, left=KEPT):
        note_manifest(out, chosen)
    print_result(content, str(summary), json_output)


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
    from dialog_gen.dataset.writer import check_config, open_writer
    from dialog_gen.engines.base import ENGINES, EngineOptions, engine_starter
    from dialog_gen.gates.apply import GatePass, ungated_images
    from dialog_gen.gates.settings import columns_read, load_gates
    from dialog_gen.gates.summary import summary_text as gates_text
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
            # Log-probabilities are known only while an answer is sampled.
            logprobs=gates is not None and "answer_logprobs" in columns_read(load_gates(gates)),
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

    with open_writer(out, plan.config()) as store:
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
            with progress_bars() as show:
                report["gates"] = gate_pass.apply(store, show)
            text += f"\n\n{gates_text(out, report['gates'])}"
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
    """Say what a dataset folder holds, by what its shards state; reads no row."""
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
    """Read a dataset's texts and show what is asked and answered, how long texts are, and what gates marked."""
    from dialog_gen.inspect.statistics import stats as dataset_stats
    from dialog_gen.inspect.stats_text import stats_text

    with progress_bars() as on_progress:
        found = dataset_stats(directory, on_progress=on_progress)
    print_result(asdict(found), f"{directory}: {stats_text(found)}", json_output)


@app.command()
def report(
    directory: DatasetOption,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    samples: Annotated[int, typer.Option(min=0, help="Images in the gallery, drawn uniformly.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
    max_mb: Annotated[float, typer.Option(min=0.1, help="Size of the page; thumbnails adapt to it.")] = 20,
) -> None:
    """Show a dataset as one self-contained HTML page: figures, distributions and a gallery with search."""
    from dialog_gen.inspect.page import report as write_report

    with progress_bars() as on_progress:
        summary = write_report(directory, out, samples=samples, seed=seed, max_mb=max_mb, on_progress=on_progress)
    typer.echo(f"{summary}\n{out}")


@app.command()
def gate(
    directory: DatasetOption,
    gates: Annotated[
        str,
        typer.Option(
            help="Names separated by commas (`dialog-gen gates` lists them), among them text (all that need no model) "
            "and all; or a TOML file."
        ),
    ] = "text",
    json_output: Json = False,
) -> None:
    """Score every question-answer pair and mark what is doubtful; deletes nothing, replaces what gates said before."""
    from dialog_gen.gates.apply import apply_gates
    from dialog_gen.gates.summary import summary_text

    with progress_bars() as show:
        summary = apply_gates(directory, gates, show)
    print_result(summary, summary_text(directory, summary), json_output)


@app.command()
def upgrade(directory: DatasetOption, json_output: Json = False) -> None:
    """Bring a dataset of an older version of the record to the current one, in place; run again to go on."""
    summary = _upgrade(directory)
    print_result(asdict(summary), str(summary), json_output)


add_publish_commands(app)


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
    from dialog_gen.gates.base import gates_in_order

    rows: list[dict[str, Any]] = []
    for name, gate in gates_in_order().items():
        settings = gate.settings_class()
        limits = {"limits": settings.limits_text(), "settings": settings.model_dump()}
        rows.append({"name": name, **limits, "description": gate.description})
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


def _upgrade(directory: str) -> "UpgradeSummary":
    from dialog_gen.dataset.upgrade import upgrade as upgrade_folder

    with progress_bars() as on_progress:
        return upgrade_folder(directory, on_progress)


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
