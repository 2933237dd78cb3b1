"""What a worker has done, and how many workers should feed one engine."""

import math
import os
from dataclasses import dataclass, field

from dialog_gen.engines.load import EngineLoad, Sums

SATURATED = 0.9
"""A stage that works for this share of the time has no room left."""
FULL = 0.9
"""An engine that has this share of the requests that it may have is full."""
MEASURED_S = 10.0
"""Workers are judged when each was measured for this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad(Sums):
    """The work of a worker over some time, all in sums."""

    seconds: float = 0.0
    """The time itself, from when the engine was ready."""
    images: int = 0
    output_tokens: int = 0
    decode_s: float = 0.0
    """Seconds in which images were read and decoded."""
    write_s: float = 0.0
    """Seconds in which rows were written and shards completed."""
    cpu_s: float = 0.0
    """Seconds of a core that the worker's process used, without its child processes."""
    requests_s: float = 0.0
    """Seconds from a request to its answer, summed over requests."""
    capacity_s: float = 0.0
    """The number of requests that the worker may have in the engine, times `seconds`."""
    engine: EngineLoad = field(default_factory=EngineLoad)

    def stages(self) -> dict[str, float]:
        """The stages of this process -> the share of the time in which they worked."""
        return {
            "reading images": _share(self.decode_s, self.seconds),
            "writing prompts": _share(self.engine.render_s, self.seconds),
            "writing rows": _share(self.write_s, self.seconds),
        }

    def is_engine_full(self) -> bool:
        """Whether requests waited for room in the engine most of the time.

        For an engine that does not report its steps: whether it had nearly as many requests as it may have.
        """
        if self.engine.steps:
            return 2 * self.engine.full_steps >= self.engine.steps
        return self.requests_s >= FULL * self.capacity_s > 0

    def is_saturated(self) -> bool:
        """Whether the process itself had no time left: one of its stages, or its interpreter, always worked."""
        return max(*self.stages().values(), _share(self.cpu_s, self.seconds)) >= SATURATED


def wants_another_frontend(loads: list[WorkerLoad], cores: int) -> bool:
    """Whether one more worker should feed an engine, judged by the latest load of each that does.

    The rule: every worker was measured for ten seconds, all are saturated, the engine is not full, and there are fewer
    workers than `cores`, the number of CPU cores for this engine.
    """
    return (
        0 < len(loads) < cores
        and all(load.seconds >= MEASURED_S and load.is_saturated() for load in loads)
        and not sum(loads, WorkerLoad()).is_engine_full()
    )


def cores_per_engine(engines: int) -> int:
    """The number of CPU cores that this process may use, divided by the number of engines; at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // engines)


def requests_of(max_in_flight: int, frontends: int) -> int:
    """The number of requests that each of several workers may have in one engine, so that it is full."""
    return math.ceil(max_in_flight / frontends)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
