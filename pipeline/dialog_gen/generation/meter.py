"""Measures what a worker does: clocks around its stages, read once a shard."""

import time

from dialog_gen.engines.base import Engine
from dialog_gen.engines.load import EngineLoad, MeasuredEngine, StageClock
from dialog_gen.executors.load import WorkerLoad


class Meter:
    """The clocks of one worker, from when its engine is ready. Cheap: nothing is done for each token."""

    def __init__(self, engine: Engine, requests: StageClock, capacity: int) -> None:
        """`requests` is the clock of the requests to the engine, `capacity` how many of them there may be at a time."""
        self.decoding, self.writing = StageClock(), StageClock()
        self._engine, self._requests, self._capacity = engine, requests, capacity
        self._images = self._output_tokens = 0
        self._began, self._cpu = time.perf_counter(), time.process_time()
        self._taken = self._now()

    def count(self, output_tokens: int) -> None:
        """Counts an image."""
        self._images += 1
        self._output_tokens += output_tokens

    def take(self) -> WorkerLoad:
        """The load since the last call."""
        now = self._now()
        since, self._taken = now - self._taken, now
        return since

    def _now(self) -> WorkerLoad:
        seconds = time.perf_counter() - self._began
        return WorkerLoad(
            seconds=seconds,
            images=self._images,
            output_tokens=self._output_tokens,
            decode_s=self.decoding.busy_s,
            write_s=self.writing.busy_s,
            cpu_s=time.process_time() - self._cpu,
            requests_s=self._requests.work_s,
            capacity_s=self._capacity * seconds,
            engine=self._engine.load() if isinstance(self._engine, MeasuredEngine) else EngineLoad(),
        )
