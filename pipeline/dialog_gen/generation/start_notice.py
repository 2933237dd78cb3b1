"""The line that a run says before its engine starts: what starts, how long that takes, what the model cannot do."""

from pathlib import Path
from typing import Any

from dialog_gen.core.plural import count_of
from dialog_gen.engines.base import ENGINES
from dialog_gen.generation.plan import RunPlan

_WEIGHTS_BYTES_PER_S = 0.5e9
"""How fast weights are read from a disk that other machines share."""
_MINUTE_S = 60
_IN_SECONDS = 90
"""A longer time is told in minutes."""


def start_notice(plan: RunPlan, log: str, last_run: dict[str, Any] | None) -> str:
    """What starts and how long it takes, in one line; empty for an engine that starts at once.

    `log` is where the engine writes. `last_run` is the run.json of an earlier run into the same folder.
    """
    model, entry = plan.engine.model, ENGINES.get(plan.engine.name)
    if entry.start_s is None:
        return ""
    last = _last_start_s(plan, last_run)
    took = f"{_text(last)} last time" if last else f"about {_text(_expected_s(plan, entry.start_s))}"
    knows = f", which knows {model.knows} only" if model.knows else ""
    return f"starting {entry.name} with {model.name}{knows}: {took}; its log: {_short(log)}"


def _expected_s(plan: RunPlan, start_s: float) -> float:
    folder = plan.engine.model.folder
    weights = folder.glob("*.safetensors") if folder is not None else ()
    return start_s + sum(file.stat().st_size for file in weights) / _WEIGHTS_BYTES_PER_S


def _last_start_s(plan: RunPlan, last_run: dict[str, Any] | None) -> float | None:
    """How long the same engine took to start in the last run; None if that is not known."""
    match last_run:
        case {"engine": {"name": plan.engine.name}, "run": {"engine_start_seconds": int() | float() as seconds}}:
            return seconds
        case _:
            return None


def _short(path: str) -> str:
    """The path from the current folder, if it lies below."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def _text(seconds: float) -> str:
    if seconds < _IN_SECONDS:
        return f"{max(1, round(seconds)) if seconds < 10 else round(seconds, -1):.0f} s"
    return count_of(round(seconds / _MINUTE_S), "minute")
