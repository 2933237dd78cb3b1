"""A whole run: checks the settings, generates dialogues, writes the summary of the dataset, applies gates."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import DialogGenError, check_at_least
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.verify import totals
from dialog_gen.dataset.writer import check_config, open_writer
from dialog_gen.engines.base import EngineOptions, faster_engine
from dialog_gen.executors.base import EXECUTORS, Event, ShardCommitted
from dialog_gen.gates.apply import GatePass, ungated_images
from dialog_gen.gates.settings import columns_read, load_gates
from dialog_gen.gates.summary import summary_text as gates_text
from dialog_gen.generation.plan import RunPlan, make_plan
from dialog_gen.generation.runner import Runner
from dialog_gen.generation.summary import RunResult, run_summary, summary_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """The dataset after a run. Counts are of the whole dataset, including earlier runs."""

    out: str
    images: int = 0
    accepted: int = 0
    rejected: int = 0
    unreadable: int = 0
    summary: dict[str, Any]
    """The content of run.json; "gates" has that of gates.json if gates were applied. After a dry run, only "config"."""
    text: str
    """The summary for people; after a dry run, the plan and the rendered prompts."""
    problem: str | None = None
    """The error message if the fraction of images without a dialogue exceeds `max_losses`; else None."""


def generate(
    *,
    model: str,
    images: str | Path,
    out: str | Path,
    protocol: str | None = None,
    engine: str | None = None,
    endpoint: str | None = None,
    executor: str = "local",
    limit: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    revision: str | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    attempts: int = 3,
    shard_size: int = 1024,
    max_in_flight: int = 256,
    max_losses: float = 0.2,
    dtype: str | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
    tensor_parallel_size: int = 1,
    deterministic: bool = False,
    gates: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> GenerationResult:
    """Generates a dialogue about every image that has none yet in the dataset folder `out`.

    The parameters are the flags of `dialog-gen run`, which explains them (`dialog-gen run --help`). A `dry_run` checks
    the settings, loads no model and writes nothing. Warnings are logged.

    Raises UsageError for wrong settings or input, MissingExtraError for an engine that is not installed, and
    EngineDiedError or DialogGenError if the engine or the disk fails. Shards that are committed by then stay, and the
    same call continues from there.
    """
    for flag, value, least in (
        ("--limit", limit, 1),
        ("--seed", seed, 0),
        ("--attempts", attempts, 1),
        ("--shard-size", shard_size, 1),
        ("--max-in-flight", max_in_flight, 1),
        ("--max-losses", max_losses, 0),
        ("--max-model-len", max_model_len, 1),
        ("--tensor-parallel-size", tensor_parallel_size, 1),
    ):
        if value is not None:
            check_at_least(flag, value, least)
    chosen_executor = EXECUTORS.get(executor, where="--executor")
    out = str(out)
    plan = make_plan(
        model=model,
        images=str(images),
        out=out,
        revision=revision,
        protocol=protocol,
        engine=engine,
        sampling={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens},
        seed=seed,
        attempts=attempts,
        shard_size=shard_size,
        limit=limit,
        options=EngineOptions(
            max_in_flight=max_in_flight,
            endpoint=endpoint,
            max_model_len=max_model_len,
            dtype=dtype,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            deterministic=deterministic,
            # Log-probabilities must be recorded while answers are sampled.
            logprobs=gates is not None and "answer_logprobs" in columns_read(load_gates(gates)),
        ),
        download=not dry_run,
    )
    # A local model is given by its path: the gate could not find it by its name.
    gate_pass = GatePass.of(gates, {**plan.config(), "model": model}) if gates is not None else None
    if engine is None and (faster := faster_engine(plan.engine.model, plan.engine.name)):
        _log.warning(
            "%s is not installed: going on with the much slower %s engine (extra: %s)",
            faster.name,
            plan.engine.name,
            faster.extra,
        )
    if dry_run:
        check_config(out, plan.config())
        return GenerationResult(out=out, summary={"config": plan.config()}, text=plan.describe())

    shards = plan.shards()
    with open_writer(out, plan.config()) as store:
        result = RunResult()
        progress = _RunProgress(plan, result, on_progress)
        with progress:
            job = Runner(store=store, generator=plan.generator, engine=plan.engine)
            chosen_executor.run(job, shards, progress.event)
        for name in result.redone:
            _log.warning("shard %s was made again: a larger --limit, changed input, or damaged files", name)
        dataset = totals(store)
        summary = run_summary(plan, result, dataset)
        if result.images or not store.exists("run.json"):
            store.put_json("run.json", summary)
        text = summary_text(out, summary, result)
        if gate_pass is not None:
            summary["gates"] = gate_pass.apply(store, on_progress)
            text += f"\n\n{gates_text(out, summary['gates'])}"
        elif unseen := ungated_images(store):
            _log.warning("gates were not applied to %d images: `dialog-gen gate %s` applies them to all", unseen, out)
    lost = dataset.rejected + dataset.unreadable
    return GenerationResult(
        out=out,
        images=dataset.images,
        accepted=dataset.accepted,
        rejected=dataset.rejected,
        unreadable=dataset.unreadable,
        summary=summary,
        text=text,
        problem=f"{lost} of {dataset.images} images gave no dialogue, more than --max-losses {max_losses} allows; "
        f"{out}/rejects holds each with its reason."
        if lost > max_losses * dataset.images
        else None,
    )


class _RunProgress:
    """Counts the events of a run and reports them as progress.

    The total number of images is counted in a thread during the run, because the source is never listed as a whole. If
    there is no progress callback, nothing is counted; instead, the log gets one line per shard.
    """

    def __init__(self, plan: RunPlan, result: RunResult, on_progress: OnProgress) -> None:
        self._plan, self._result, self._on_progress = plan, result, on_progress
        self._watched = on_progress is not ignore_progress
        self._total: int | None = None
        self._stop = threading.Event()

    def __enter__(self) -> "_RunProgress":
        self._show()
        if self._watched:
            threading.Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._show()

    def event(self, event: Event) -> None:
        """Counts an event of the executor."""
        self._result.add(event)
        if isinstance(event, ShardCommitted):
            level = logging.DEBUG if self._watched else logging.INFO
            _log.log(
                level,
                "shard %s: %d accepted, %d rejected, %d unreadable",
                event.shard,
                event.accepted,
                event.rejected,
                event.unreadable,
            )
        else:
            self._show()

    def _show(self) -> None:
        result = self._result
        lost = ", ".join(f"{result.counts[name]} {name}" for name in ("rejected", "unreadable") if result.counts[name])
        note = lost if result.engine or self._stop.is_set() else "starting the engine"
        self._on_progress("dialogues", result.images + result.images_skipped, self._total, "images", note)

    def _count(self) -> None:
        images = 0
        try:
            for shard in self._plan.shards():
                if self._stop.is_set():
                    return
                images += shard.count
        except DialogGenError:
            return  # the run finds the same error and raises it
        self._total = images
