"""A whole run: checks the settings, generates dialogues, writes the summary of the dataset, applies gates."""

import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import signature
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from dialog_gen.core.errors import DialogGenError, UsageError, check_within
from dialog_gen.core.notices import NOTICES
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import CHECKING, OnProgress, ignore_progress
from dialog_gen.dataset.command import Command, command_of
from dialog_gen.dataset.folder import is_local, open_dataset
from dialog_gen.dataset.notes import RUN, json_object
from dialog_gen.dataset.verify import totals
from dialog_gen.dataset.writer import DatasetWriter, check_config, open_writer
from dialog_gen.engines.base import ENGINES, EngineOptions, faster_engine
from dialog_gen.executors.base import ALONE, EXECUTORS, EngineWaits, Event, ExecutorOptions, ShardCommitted, Where
from dialog_gen.gates.apply import GatePass, ungated_images
from dialog_gen.gates.in_run import RunGates
from dialog_gen.gates.settings import columns_read, load_gates
from dialog_gen.gates.summary import summary_text as gates_text
from dialog_gen.generation.committer import Committer
from dialog_gen.generation.part import WHOLE, OwnShards, Part, put_report
from dialog_gen.generation.plan import RunPlan, make_plan
from dialog_gen.generation.runner import Runner
from dialog_gen.generation.spending import check_one_budget, noting_costs, server_report
from dialog_gen.generation.start_notice import start_notice
from dialog_gen.generation.summary import RunResult, run_summary, summary_text
from dialog_gen.models.registry import MODELS
from dialog_gen.sources.base import InputShard
from dialog_gen.sources.pixels import LARGEST_PIXELS
from dialog_gen.sources.unused import UNUSED_REASONS, UnusedTally

_log = logging.getLogger(__name__)
_COUNT = 10**15
_REQUESTS = 1 << 20
_TOKENS = 1 << 30
_PRICE = 10**9
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "limit": (1, _COUNT),
    "seed": (0, (1 << 63) - 1),
    "attempts": (1, 1000),
    "shard_size": (1, 10**9),
    "max_in_flight": (1, _REQUESTS),
    "engine_timeout": (1, 10**7),
    "max_losses": (0, 1),
    "gpu_memory_utilization": (0.05, 1),
    "max_model_len": (1, _TOKENS),
    "min_pixels": (1, LARGEST_PIXELS),
    "max_pixels": (1, LARGEST_PIXELS),
    "tensor_parallel_size": (1, 1 << 16),
    "gpu_hour_price": (0, _PRICE),
    "max_num_seqs": (1, _REQUESTS),
    "max_num_batched_tokens": (1, _TOKENS),
    "engines": (1, 1 << 16),
    "frontends": (1, 1 << 16),
    "image_max_side": (32, 1 << 20),
    "max_cost": (0, _PRICE),
    "price_input": (0, _PRICE),
    "price_output": (0, _PRICE),
}
"""The least and the largest value of each argument: larger ones could not be stored, or no engine could use them."""
_ELSEWHERE = ("engines", "frontends", "part", "gpu_hour_price", "ray_address")
"""Arguments that say how one machine took part in a run; they are not recorded for a repair."""


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
    endpoint: str | Sequence[str] | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    image_max_side: int = 1024,
    image_format: Literal["jpeg", "png"] = "jpeg",
    max_cost: float | None = None,
    price_input: float | None = None,
    price_output: float | None = None,
    executor: str = "local",
    ray_address: str | None = None,
    engines: int | None = None,
    frontends: int | None = None,
    part: str | None = None,
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
    engine_timeout: float = 1800,
    max_losses: float = 0.2,
    keep_going: bool = False,
    dtype: str | None = None,
    max_model_len: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    gpu_memory_utilization: float | None = None,
    tensor_parallel_size: int = 1,
    deterministic: bool = False,
    structured: bool = False,
    kv_cache_dtype: str | None = None,
    quantization: str | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    gates: str | None = None,
    prefix_ids: bool = False,
    images_per_sample: Literal["first", "all"] = "first",
    gpu_hour_price: float | None = None,
    on_progress: OnProgress = ignore_progress,
) -> GenerationResult:
    """Generates a dialogue about every image that has none yet in the dataset folder `out`.

    The parameters are the flags of `dialog-gen run`, which explains them (`dialog-gen run --help`). A `dry_run` checks
    the settings, loads no model and writes nothing. Warnings are logged.

    Raises UsageError for wrong settings or input, MissingExtraError for an engine that is not installed,
    FailedCheckError if the first images are all refused for one reason (not with `keep_going`), and EngineDiedError or
    DialogGenError if the engine or the disk fails. An engine that hangs is given up (EngineHangsError): its processes
    are killed, but a thread of this process may hang until the process ends. Shards that are committed by then stay,
    and the same call continues from there.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("out", "dry_run", "on_progress")}
    out = str(out)
    plan = plan_of(out, arguments, download=not dry_run)
    # A local model is given by its path: the gate could not find it by its name.
    gate_pass = GatePass.of(gates, {**plan.config(), "model": model}) if gates is not None else None
    if engine is None and (faster := faster_engine(plan.engine.model, plan.engine.name)):
        _log.warning(
            "%s is not installed: going on with the much slower %s engine (extra: %s)",
            faster.name,
            plan.engine.name,
            faster.extra,
        )
    check_config(out, plan.config())
    plan.check_ids(on_progress)
    on_progress(CHECKING, 1, 1)
    if dry_run:
        return GenerationResult(out=out, summary={"config": plan.config()}, text=plan.describe())

    # Connects to a cluster, before anything is written.
    map_shards = Where(executor, ray_address).map()
    own = Part.parse(part) if part is not None else WHOLE
    # Parts can run at the same time. At a URL there are no locks, and none are needed: no shard is in two parts.
    shared = own is not WHOLE and is_local(out)
    # Raises UsageError for an empty source, before anything is written.
    shards = OwnShards(own, plan.shards())
    with open_writer(out, plan.config(), made_by=recorded_call(arguments), shared=shared) as store:
        report = RUN if own is WHOLE else own.report_name()
        result = RunResult(knows=plan.engine.model.knows)
        with noting_costs(store, report, plan, result) as paid:
            run_plan(
                plan,
                executor,
                executor_options(arguments, plan),
                store,
                shards,
                lambda: own.of(plan.shards()),
                on_progress,
                result,
                gates=gate_pass.in_run(plan.engine) if gate_pass is not None else None,
                keep_going=keep_going,
                log_name="engine" if own is WHOLE else f"engine-{own.name}",
            )
            for name in result.redone:
                _log.warning("shard %s was made again: a larger --limit, changed input, or damaged files", name)
            dataset = totals(store)
            server = server_report(plan, result.served, paid)
            summary = run_summary(plan, result, dataset, server=server, gpu_hour_price=gpu_hour_price)
            if own is not WHOLE:
                put_report(store, own, summary, is_complete=shards.names <= set(store.shards()))
            elif result.images or not store.exists(RUN):
                store.put_json(RUN, summary)
        text = summary_text(out, summary, result)
        if gate_pass is not None and own is not WHOLE:
            _log.warning(
                "parts do not complete gates: run `dialog-gen gate %s --gates %s` when all are done", out, gates
            )
        elif gate_pass is not None:
            summary["gates"] = gate_pass.apply(store, on_progress, map_shards=map_shards)
            text += f"\n\n{gates_text(out, summary['gates'])}"
        elif unseen := ungated_images(store):
            _log.warning(
                "gates were not applied to %s: `dialog-gen gate %s` applies them to all", count_of(unseen, "image"), out
            )
    lost = dataset.rejected + dataset.unreadable
    return GenerationResult(
        out=out,
        images=dataset.images,
        accepted=dataset.accepted,
        rejected=dataset.rejected,
        unreadable=dataset.unreadable,
        summary=summary,
        text=text,
        problem=f"{lost} of {count_of(dataset.images, 'image')} gave no dialogue, more than --max-losses {max_losses} "
        f"allows; {out}/rejects holds each with its reason."
        if lost > max_losses * dataset.images
        else None,
    )


def _watched(shards: Iterator[InputShard], unused: UnusedTally) -> Iterator[InputShard]:
    """The shards; counts what is not used."""
    for shard in shards:
        unused.merge(shard.unused, shard.unused_names)
        yield shard


def plan_of(out: str, arguments: Mapping[str, Any], *, download: bool = True, starts: bool = True) -> RunPlan:
    """The plan of a call of `generate` with these arguments, all of them except `out`; raises what `generate` does.

    Without `starts`, the engine will not be started, so it is not checked.
    """
    given = SimpleNamespace(**arguments)
    for name, (least, most) in _BOUNDS.items():
        if (value := arguments[name]) is not None:
            check_within(f"--{name.replace('_', '-')}", value, least, most)
    Where(given.executor, given.ray_address).check()
    if given.part is not None:
        Part.parse(given.part)
    plan = make_plan(
        model=given.model,
        images=str(given.images),
        out=out,
        revision=given.revision,
        protocol=given.protocol,
        engine=given.engine,
        sampling={name: arguments[name] for name in ("temperature", "top_p", "max_tokens")},
        seed=given.seed,
        attempts=given.attempts,
        shard_size=given.shard_size,
        limit=given.limit,
        prefix_ids=given.prefix_ids,
        images_per_sample=given.images_per_sample,
        options=EngineOptions(
            **{field.name: arguments[field.name] for field in fields(EngineOptions) if field.name in arguments},
            timeout_s=given.engine_timeout,
            endpoints=_endpoints(given.endpoint),
            # Log-probabilities must be recorded while answers are sampled.
            logprobs=given.gates is not None and "answer_logprobs" in columns_read(load_gates(given.gates)),
        ),
        download=download,
        starts=starts,
        here=given.executor == "local",
    )
    plan.engine.check_shared(given.frontends or 1)
    options = executor_options(arguments, plan)
    EXECUTORS.get(given.executor).check(options)
    check_one_budget(given.max_cost, given.executor, options)
    return plan


def with_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`, completed by the defaults of those that are not given."""
    parameters = signature(generate).parameters.items()
    return {**{name: p.default for name, p in parameters if p.default is not p.empty}, **arguments}


def executor_options(arguments: Mapping[str, Any], plan: RunPlan) -> ExecutorOptions:
    """The settings of the executor in a call of `generate` with these arguments."""
    return ExecutorOptions(
        engines=arguments["engines"],
        frontends=arguments["frontends"],
        gpus_per_engine=plan.engine.options.tensor_parallel_size,
        uses_gpus=ENGINES.get(plan.engine.name).needs == "folder",
        address=arguments["ray_address"],
    )


def _endpoints(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def recorded_call(arguments: Mapping[str, Any]) -> Command:
    """The call of `generate` for command.json."""
    paths = ["images"]
    # These three may also be names, of a model, a protocol or gates.
    if Path(str(arguments["model"])).is_dir() and str(arguments["model"]) not in MODELS.names():
        paths.append("model")
    paths += [name for name in ("protocol", "gates") if str(arguments[name]).endswith(".toml")]
    recorded = {name: value for name, value in arguments.items() if name not in _ELSEWHERE}
    return command_of("run", recorded, paths=paths)


def make_again(
    location: str,
    arguments: Mapping[str, Any],
    *,
    finished: bool,
    shards: Collection[str],
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Makes the missing shards of a dataset that `generate` made with `arguments`, and leaves all others unchanged.

    `finished` says that a run had finished: then all missing shards of the input are made and run.json is written,
    otherwise only the missing ones of `shards`. Raises OtherConfigError if the same arguments give another
    configuration now, UsageError if shards are missing and the input of another shard has changed: the images that
    belong to the missing ones may be in others now; and what `generate` raises.
    """
    if unknown := sorted(set(arguments) - signature(generate).parameters.keys()):
        raise UsageError(f"{location} was made with {', '.join(unknown)}, which this dialog-gen does not know.")
    arguments = with_defaults(arguments)
    revision = str(open_dataset(location).config().get("model_revision"))
    if arguments["revision"] is None and re.fullmatch("[0-9a-f]{40}", revision):
        arguments["revision"] = revision  # the branch may have moved since
    plan = plan_of(location, arguments)
    check_config(location, plan.config())
    with open_writer(location, plan.config()) as store:
        there = set(store.shards())
        _check_input(plan, store)

        def missing() -> Iterator[InputShard]:
            for shard in plan.shards():
                if shard.name not in there and (finished or shard.name in shards):
                    yield shard

        # Rows that were all refused before will be all refused again.
        options, result = executor_options(arguments, plan), RunResult()
        executor = arguments["executor"]
        with noting_costs(store, RUN, plan, result) as paid:
            run_plan(plan, executor, options, store, missing(), missing, on_progress, result, keep_going=True)
            if finished and (result.images or not store.exists(RUN)):
                server = server_report(plan, result.served, paid)
                store.put_json(RUN, run_summary(plan, result, totals(store), server=server))


def _check_input(plan: RunPlan, store: DatasetWriter) -> None:
    changed, is_missing = None, False
    for shard in plan.shards():
        manifest = store.manifest(shard.name)
        is_missing |= manifest is None
        if manifest is not None and manifest.input_fingerprint != shard.fingerprint:
            changed = changed or shard.name
    if is_missing and changed:
        raise UsageError(
            f"{plan.images} has changed since shard {changed} was made of it: an image could come into two shards. "
            "Restore the input and repair again, or run the command that made the dataset, which makes changed shards "
            "anew."
        )


def run_plan(
    plan: RunPlan,
    executor: str,
    options: ExecutorOptions,
    store: DatasetWriter,
    shards: Iterator[InputShard],
    again: Callable[[], Iterator[InputShard]],
    on_progress: OnProgress,
    result: RunResult,
    *,
    gates: RunGates | None = None,
    keep_going: bool,
    log_name: str = "engine",
) -> None:
    """Makes shards, and counts them in `result`; `again` gives the same ones once more, to be counted."""
    unused = UnusedTally()
    with _RunProgress(again, result, on_progress) as progress:
        # The gates' questions show the image again.
        engine = replace(plan.engine, options=replace(plan.engine.options, reuse_images=True)) if gates else plan.engine
        job = Runner(staging=store.staging(log_name), generator=plan.generator, engine=engine, gates=gates)
        committer = Committer(store, progress.event, keep_going=keep_going)
        todo = committer.incomplete(_watched(shards, unused))
        there = [Path(plan.images)] if Path(plan.images).exists() else []
        options = replace(options, uploads=store.local_root is None, shared=(*store.shared(), *there))
        # Nothing starts if there is nothing to do.
        if (first := next(todo, None)) is not None:
            if notice := start_notice(plan, str(job.log(ALONE)), json_object(store, RUN)):
                NOTICES.info("%s", notice)
            todo = chain([first], todo)
        EXECUTORS.get(executor).run(job, todo, committer.event, options)
    for reason in UNUSED_REASONS:
        for line in unused.lines(only=[reason]):
            _log.log(logging.INFO if reason == "other_file" else logging.WARNING, "not used: %s", line)


class _RunProgress:
    """Counts the events of a run and reports them as progress.

    The total number of images is counted in a thread during the run, because the source is never listed as a whole. If
    there is no progress callback, nothing is counted; instead, the log gets one line per shard.
    """

    def __init__(self, shards: Callable[[], Iterator[InputShard]], result: RunResult, on_progress: OnProgress) -> None:
        self._shards, self._result, self._on_progress = shards, result, on_progress
        self._watched = on_progress is not ignore_progress
        self._total: int | None = None
        self._stop = threading.Event()

    def __enter__(self) -> "_RunProgress":
        self._show()
        if self._watched:
            threading.Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if kind is None and self._total is None:
            # A run that was faster than the count has made everything there is.
            self._total = self._result.images + self._result.images_skipped
        self._show()
        # The bar counts images, but shards are kept. Without a bar, the log names each shard that is finished.
        if kind is KeyboardInterrupt and self._watched and (unfinished := self._result.unfinished):
            done = self._result.images + self._result.images_skipped - unfinished
            NOTICES.info(
                "finished shards have %s; %d in unfinished shards are made again", count_of(done, "image"), unfinished
            )

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
            if isinstance(event, EngineWaits):
                _log.warning("%s", event.reason) if event.reason else _log.info("a server answers again")
            self._show()

    def _show(self) -> None:
        result = self._result
        counts = result.counts + result.lost_before
        lost = ", ".join(f"{counts[name]} {name}" for name in ("rejected", "unreadable") if counts[name])
        note = result.waits or lost if result.engine or self._stop.is_set() else "starting the engine"
        # Shards that are skipped have no rate.
        unit = "images" if result.engine else ""
        self._on_progress("dialogues", result.images + result.images_skipped, self._total, unit, note)

    def _count(self) -> None:
        images = 0
        try:
            for shard in self._shards():
                if self._stop.is_set():
                    return
                images += shard.count
        except DialogGenError:
            return  # the run finds the same error and raises it
        self._total = images
        self._show()
