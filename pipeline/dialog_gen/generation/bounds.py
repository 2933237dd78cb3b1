"""What bound a run: the figures of each engine and of all, for run.json and for people."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from dialog_gen.core.plural import count_of
from dialog_gen.executors.base import EngineStarted, LoadMeasured
from dialog_gen.executors.load import SATURATED, WorkerLoad

NOTHING = "nothing"


@dataclass(slots=True)
class LoadTally:
    """Adds up the loads of a run's workers by engine."""

    _loads: dict[int, dict[str, WorkerLoad]] = field(default_factory=lambda: defaultdict(dict))
    _gpus: dict[int, int] = field(default_factory=dict[int, int])

    def add(self, event: EngineStarted | LoadMeasured) -> None:
        """Adds what a worker reports."""
        if isinstance(event, EngineStarted):
            self._gpus[event.engine] = event.gpus
            return
        workers = self._loads[event.engine]
        workers[event.worker] = workers.get(event.worker, WorkerLoad()) + event.load

    @property
    def gpus(self) -> int:
        """The number of GPUs of all engines."""
        return sum(self._gpus.values())

    def summary(self) -> dict[str, Any]:
        """The figures of all engines together, and of each: `figures`."""
        engines = [list(workers.values()) for _, workers in sorted(self._loads.items())]
        return {
            **figures([load for workers in engines for load in workers]),
            "engines": [figures(workers) for workers in engines],
        }


def figures(workers: list[WorkerLoad]) -> dict[str, Any]:
    """The figures of workers that ran at the same time; `busy` has the mean share of the time of each stage."""
    load, seconds = sum(workers, WorkerLoad()), max((worker.seconds for worker in workers), default=0.0)
    engine = load.engine
    name, reason = bound_by(load)
    prefill = engine.times.prefill_share()
    return {
        "workers": len(workers),
        "images": load.images,
        "seconds": round(seconds, 3),
        "images_per_second": _part(load.images, seconds, 2),
        "output_tokens_per_second": _part(load.output_tokens, seconds, 2),
        "bound_by": name,
        "bound_reason": reason,
        "busy": {
            **{stage: round(share, 4) for stage, share in load.stages().items()},
            "cpu": _part(load.cpu_s, load.seconds),
        },
        "seconds_of": {
            "decode": round(load.decode_s, 3),
            "render": round(engine.render_s, 3),
            "writing": round(load.write_s, 3),
            "engine_wait": round(engine.waiting_s or load.requests_s, 3),
            "cpu": round(load.cpu_s, 3),
        },
        "requests_in_flight": _part(load.requests_s, seconds, 1),
        **(
            {
                "steps": engine.steps,
                "full_steps": _part(engine.full_steps, engine.steps),
                "kv_cache_use": _part(engine.kv_cache_use, engine.steps),
                "prefix_hits": _part(engine.cached_tokens, engine.prompt_tokens),
                "preemptions": engine.preemptions,
                "prefill_share": None if prefill is None else round(prefill, 4),
            }
            if engine.steps
            else {}
        ),
    }


def bound_by(load: WorkerLoad) -> tuple[str, str]:
    """The name of what bound this work, and the figure that shows it.

    A full engine bounds the run by what it does most. If the engine had room, the bound is the stage of the worker that
    worked nearly all of the time, or else its CPU, or else `NOTHING`: the run was short, or waited for its input.
    """
    if load.is_engine_full():
        engine = load.engine
        if not engine.steps:
            return "engine", f"{load.requests_s / load.seconds:.0f} requests in it all the time"
        prefill = engine.times.prefill_share()
        full = f"engine full in {engine.full_steps / engine.steps:.0%} of its steps"
        if prefill is None:
            return "engine", full
        return ("prefill", f"{full}, prefill {prefill:.0%}") if prefill > 1 / 2 else ("decode steps", full)
    stages = load.stages()
    stage = max(stages, key=stages.__getitem__)
    if stages[stage] >= SATURATED:
        return stage, f"busy {stages[stage]:.0%}"
    if load.seconds and load.cpu_s / load.seconds >= SATURATED:
        return "CPU of the worker", f"{load.cpu_s / load.seconds:.0%} of a core"
    return NOTHING, f"the busiest part, {stage}, worked {stages[stage]:.0%} of the time"


def cost_per_million(gpu_hours: float, price: float, images: int) -> float | None:
    """The price of a million images, at `price` for an hour of one GPU; None without images or GPUs."""
    return round(gpu_hours * price / images * 1e6, 2) if images and gpu_hours else None


def bounds_text(load: dict[str, Any], *, gpu_hours: float, cost: float | None) -> str:
    """One or two lines of text for what `LoadTally.summary` gives."""
    busy = ", ".join(f"{'CPU' if stage == 'cpu' else stage} {share:.0%}" for stage, share in load["busy"].items())
    parts = list[str]()
    if load.get("steps"):
        parts.append(f"KV cache {load['kv_cache_use']:.0%} in use, prefix hits {load['prefix_hits']:.0%}")
        if load["preemptions"]:
            parts.append(f"{count_of(load['preemptions'], 'preemption')}")
    if gpu_hours:
        parts.append(f"{gpu_hours:.2f} GPU hours" + (f", {cost} for a million images" if cost is not None else ""))
    bound = f"bound by: {load['bound_by']} ({load['bound_reason']})"
    if load["bound_by"] == NOTHING:
        bound = "bound by no single part"
    line = f"  {bound}; busy: {busy}"
    return f"{line}\n  {'; '.join(parts)}" if parts else line


def _part(part: float, whole: float, digits: int = 4) -> float:
    return round(part / whole, digits) if whole else 0.0
