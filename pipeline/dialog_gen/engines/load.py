"""What an engine and its stages have done: sums that are cheap to keep and can be added over shards and processes."""

import time
from dataclasses import dataclass, field, fields
from typing import Protocol, Self, runtime_checkable

_TIMED_STEPS_NEEDED = 20


class Sums:
    """A dataclass of sums: two of them are added, or subtracted, field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})  # type: ignore[arg-type]

    def __sub__(self, other: Self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})  # type: ignore[arg-type]


class StageClock:
    """The time that work spends in a stage: `with clock: ...`, in one thread or in the tasks of one event loop.

    `busy_s` is the time during which any work was inside, `work_s` the sum over all work. So `work_s` divided by the
    time that passed is the mean number of pieces of work inside.
    """

    def __init__(self) -> None:
        self._busy_s = self._work_s = self._since = 0.0
        self._inside = 0

    def __enter__(self) -> None:
        self._advance(1)

    def __exit__(self, *_: object) -> None:
        self._advance(-1)

    @property
    def busy_s(self) -> float:
        """Seconds with any work inside, until now."""
        return self._busy_s + (time.perf_counter() - self._since if self._inside else 0.0)

    @property
    def work_s(self) -> float:
        """Seconds inside, summed over all work, until now."""
        return self._work_s + self._inside * (time.perf_counter() - self._since)

    def _advance(self, change: int) -> None:
        now = time.perf_counter()
        if self._inside:
            self._busy_s += now - self._since
            self._work_s += self._inside * (now - self._since)
        self._since = now
        self._inside += change


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes(Sums):
    """Sums over engine steps, from which `prefill_share` tells the time of prompts from that of answers.

    A step with `p` prompt tokens and `o` output tokens that took `s` seconds adds 1, s, p, o and their products.
    """

    steps: int = 0
    s: float = 0.0
    p: float = 0.0
    o: float = 0.0
    pp: float = 0.0
    po: float = 0.0
    oo: float = 0.0
    ps: float = 0.0
    os: float = 0.0

    @classmethod
    def of(cls, seconds: float, prompt_tokens: int, output_tokens: int) -> "StepTimes":
        """The sums of one step."""
        p, o = prompt_tokens, output_tokens
        return cls(steps=1, s=seconds, p=p, o=o, pp=p * p, po=p * o, oo=o * o, ps=p * seconds, os=o * seconds)

    def prefill_share(self) -> float | None:
        """The share of the steps' time that prompt tokens cause, in [0, 1]; None if there are too few steps.

        Most steps hold prompts and answers at once. So this is the least-squares fit of seconds = a + b p + c o: the
        prompts' part is b times all prompt tokens, and the rest is that of decoding.
        """
        import numpy as np

        if self.steps < _TIMED_STEPS_NEEDED or self.s <= 0:
            return None
        normal = np.array([[self.steps, self.p, self.o], [self.p, self.pp, self.po], [self.o, self.po, self.oo]])
        # Tokens and steps differ by orders of magnitude.
        scale = np.sqrt(np.maximum(normal.diagonal(), 1))
        fitted, *_ = np.linalg.lstsq(normal / np.outer(scale, scale), np.array([self.s, self.ps, self.os]) / scale)
        return float(np.clip(fitted[1] / scale[1] * self.p / self.s, 0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad(Sums):
    """The work of an engine, as one process that asks it sees it. Sums; several processes share the steps."""

    render_s: float = 0.0
    """Seconds during which any request was rendered, preprocessed or tokenised."""
    waiting_s: float = 0.0
    """Seconds from a rendered request to its answer, summed over requests."""
    steps: int = 0
    """Steps that this process heard of."""
    full_steps: int = 0
    """Steps in which requests waited for room in the engine."""
    kv_cache_use: float = 0.0
    """Fraction of the KV cache in use, summed over steps."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the prefix cache had."""
    preemptions: int = 0
    """Requests that were started again because the KV cache was full."""
    times: StepTimes = field(default_factory=StepTimes)


@runtime_checkable
class MeasuredEngine(Protocol):
    """An engine that knows its load. Optional: other engines are judged by their requests in flight."""

    gpus: int
    """The number of GPUs that the engine uses."""

    def load(self) -> EngineLoad:
        """The work since the engine started."""
        ...
