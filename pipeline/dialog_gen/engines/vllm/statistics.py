"""What vLLM says about its steps, summed up; once a step, and nothing for each token or request."""

import time
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerManager

from dialog_gen.engines.load import EngineLoad, StageClock, StepTimes

# A step after a longer pause is not timed: the engine had nothing to do.
_PAUSE_S = 5.0

REPORTS_STEPS: dict[str, Any] = {"disable_log_stats": False, "enable_logging_iteration_details": True}
"""The arguments of `AsyncEngineArgs` with which a core reports its steps."""


class StepStatistics:
    """Sums of what the core of an engine reports about its steps. A core with several clients tells each step to one.

    The duration of a step is the time since the step before, as far as requests were in the engine: the core's own
    figures leave out what runs while it schedules.
    """

    def __init__(self, engine: AsyncLLM, in_engine: StageClock) -> None:
        """`in_engine`: the clock of the requests in the engine."""
        self.load = EngineLoad()
        self._in_engine = in_engine
        self._last_step, self._last_busy_s, self._last = -1, 0.0, 0.0
        # vLLM's own statistics take time for each token and request, and are exported to nobody.
        if engine.output_handler is None:
            engine.log_stats = engine.output_processor.log_stats = False
        if isinstance(manager := engine.logger_manager, StatLoggerManager):
            manager.stat_loggers[:] = [self]  # type: ignore[list-item]

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_: Any) -> None:
        """Adds a step; vLLM calls this."""
        if (stats := scheduler_stats) is None:
            return
        prefix = stats.prefix_cache_stats
        times = StepTimes()
        if (step := stats.iteration_details) is not None:
            now, busy_s = time.perf_counter(), self._in_engine.busy_s
            if step.iteration_index == self._last_step + 1 and now - self._last < _PAUSE_S:
                times = StepTimes.of(busy_s - self._last_busy_s, step.num_ctx_tokens, step.num_generation_tokens)
            self._last_step, self._last_busy_s, self._last = step.iteration_index, busy_s, now
        self.load += EngineLoad(
            steps=1,
            full_steps=int(stats.num_waiting_reqs > 0),
            kv_cache_use=stats.kv_cache_usage,
            prompt_tokens=prefix.queries,
            cached_tokens=prefix.hits,
            preemptions=prefix.preempted_requests,
            times=times,
        )

    def log_engine_initialized(self) -> None:
        """Nothing; vLLM may call this."""

    def log(self) -> None:
        """Nothing; vLLM may call this."""
