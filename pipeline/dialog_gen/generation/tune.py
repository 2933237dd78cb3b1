"""Searches the fastest settings of an engine, by measuring dialogues about the user's images on the user's GPU.

A short search, one engine after another:

1. the types: as the model is, KV cache in fp8, weights and KV cache in fp8;
2. for the fastest of all, and the fastest of those that keep the texts: as many requests at a time as the KV cache has
   room for, which is known from step 1;
3. for the fastest then: 4,096 and 16,384 tokens a step in place of 8,192.

An engine that does not start, for want of memory mostly, is marked and left behind.
"""

import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError, check_at_least
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.visible import visible
from dialog_gen.engines.base import ENGINES, EngineOptions
from dialog_gen.generation.plan import RunPlan, make_plan
from dialog_gen.generation.trial import Measured, Trial, TrialFailedError, run_trial
from dialog_gen.sources.images import UnreadableImage, decode_image

_TYPES: tuple[Mapping[str, Any], ...] = (
    {},
    {"kv_cache_dtype": "fp8"},
    {"kv_cache_dtype": "fp8", "quantization": "fp8"},
)
_STEP_TOKENS = (16384, 4096)
_MOST_SEQS = 1024
_IMAGES, _IMAGE_BYTES = 512, 64 << 20
"""The images that are used, at most: their number, and their bytes together."""
_LEAST_WINDOW_S, _MOST_WINDOW_S, _WINDOW_PART = 1.0, 20.0, 1 / 30
_TEXT_SETTINGS = ("kv_cache_dtype", "quantization")
_SHOWN = 120
_NO_TIME = "not tried: the time was over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A choice of settings, and what became of it."""

    settings: Mapping[str, Any]
    """Fields of `EngineOptions` that differ from the defaults."""
    measured: Measured | None = None
    problem: str | None = None
    """Why nothing was measured."""

    @property
    def flags(self) -> str:
        """The settings as flags of `dialog-gen run`; empty for the defaults."""
        return " ".join(
            f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in self.settings.items()
        )

    @property
    def changes_texts(self) -> bool:
        """Whether the settings change the answers, not only the speed."""
        return any(name in self.settings for name in _TEXT_SETTINGS)

    def to_json(self) -> dict[str, Any]:
        """The choice as `dialog-gen tune --json` prints it."""
        measured = self.measured
        figures = (
            "images_per_second",
            "output_tokens_per_second",
            "start_seconds",
            "kv_cache_tokens",
            "request_tokens",
        )
        return {
            "flags": self.flags,
            "settings": dict(self.settings),
            "changes_texts": self.changes_texts,
            "problem": self.problem,
            **{name: getattr(measured, name) if measured else None for name in figures},
            "images_measured": measured.images if measured else 0,
        }


@dataclass(slots=True, kw_only=True)
class TuneResult:
    """The settings that were tried, in order."""

    tried: list[Tried] = field(default_factory=list[Tried])
    interrupted: bool = False
    """Whether Ctrl-C ended the search."""
    logs: str | None = None
    """The folder with the engines' output, if one of them failed."""

    def best(self, *, same_texts: bool = False) -> Tried | None:
        """The fastest choice, or the fastest that does not change the texts; None if none was measured."""
        found = [tried for tried in self.tried if tried.measured and not (same_texts and tried.changes_texts)]
        return max(found, key=lambda tried: _rate(tried), default=None)

    def to_json(self) -> dict[str, Any]:
        """The result as `dialog-gen tune --json` prints it."""
        best, same = self.best(), self.best(same_texts=True)
        return {
            "tried": [tried.to_json() for tried in self.tried],
            "best_flags": best.flags if best else None,
            "best_flags_same_texts": same.flags if same else None,
            "interrupted": self.interrupted,
            "logs": self.logs,
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and rows for people."""
        columns = ["settings", "images/s", "output tokens/s", "KV cache tokens", "start s", "texts", "note"]
        best = self.best()
        return columns, [
            [
                tried.flags or "(defaults)",
                *(_figures(tried.measured) if tried.measured else [""] * 4),
                "change" if tried.changes_texts else "same",
                "fastest" if tried is best else (tried.problem or "")[:_SHOWN],
            ]
            for tried in self.tried
        ]

    def advice(self) -> str:
        """The flags to paste."""
        best, same = self.best(), self.best(same_texts=True)
        lines = [f"fastest: {best.flags or 'the defaults'}" if best else "nothing was measured"]
        if untried := sum(tried.problem == _NO_TIME for tried in self.tried):
            measured = sum(tried.measured is not None for tried in self.tried)
            lines.append(f"  of {measured} measured; {untried} more would need more --seconds")
        if best is not None and best.changes_texts:
            lines.append("  quantisation changes the texts: compare the dialogues of a few images before a long run")
            if same is not None:
                ratio = _rate(best) / _rate(same)
                lines.append(f"fastest with the same texts: {same.flags or 'the defaults'} ({ratio:.2f} times slower)")
        if self.logs is not None:
            lines.append(f"the output of the engines that failed: {visible(self.logs)}")
        return "\n".join(lines)


def tune(
    *,
    model: str,
    images: str | Path,
    protocol: str | None = None,
    engine: str | None = None,
    images_per_sample: str = "first",
    seconds: float = 900,
    revision: str | None = None,
    dtype: str | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
    tensor_parallel_size: int = 1,
    on_progress: OnProgress = ignore_progress,
) -> TuneResult:
    """Measures engines with different settings, one after another, for at most `seconds` together.

    The other parameters are flags of `dialog-gen tune`, which explains them. After Ctrl-C, the result holds what was
    measured until then.

    Raises UsageError for wrong settings and if there are no images, and MissingExtraError for an engine that is not
    installed. An engine that does not start is part of the result.
    """
    check_at_least("--seconds", seconds, 1)
    plan = make_plan(
        model=model,
        images=str(images),
        out="memory://tune",  # nothing is written
        revision=revision,
        protocol=protocol,
        engine=engine,
        sampling={},
        seed=0,
        attempts=1,
        shard_size=_IMAGES,
        limit=_IMAGES,
        images_per_sample=images_per_sample,
        options=EngineOptions(
            dtype=dtype,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
        ),
    )
    search = _Search(plan, _some_images(plan), seconds, on_progress)
    try:
        search.run()
    except KeyboardInterrupt:
        search.result.interrupted = True
    search.close()
    return search.result


class _Search:
    def __init__(
        self, plan: RunPlan, images: tuple[tuple[bytes, ...], ...], seconds: float, on_progress: OnProgress
    ) -> None:
        self._plan, self._images, self._on_progress = plan, images, on_progress
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._longest = 0.0
        self._logs = Path(tempfile.mkdtemp(prefix="dialog-gen-tune-"))
        self.result = TuneResult()

    def run(self) -> None:
        """Tries one choice after another."""
        knows = ENGINES.get(self._plan.engine.name, where="--engine").knows
        for settings in _TYPES:
            if settings.keys() <= knows:
                self._try(settings)
        if "max_num_seqs" in knows:
            for settings in list(self._with_more_requests()):
                self._try(settings)
        best = self.result.best()
        if best is not None and "max_num_batched_tokens" in knows:
            for tokens in _STEP_TOKENS:
                self._try({**best.settings, "max_num_batched_tokens": tokens})

    def close(self) -> None:
        """Removes the logs unless an engine failed."""
        if any((self._logs / f"{number}.log").exists() and t.problem for number, t in enumerate(self.result.tried)):
            self.result.logs = str(self._logs)
        else:
            shutil.rmtree(self._logs, ignore_errors=True)

    def _with_more_requests(self) -> Iterator[dict[str, Any]]:
        """The fastest choices, with as many requests at a time as the KV cache has room for."""
        seen = list[Tried]()
        for tried in (self.result.best(), self.result.best(same_texts=True)):
            if tried is None or tried in seen or tried.measured is None:
                continue
            seen.append(tried)
            measured = tried.measured
            if not measured.kv_cache_tokens or not measured.request_tokens:
                continue
            room = min(int(measured.kv_cache_tokens / measured.request_tokens) // 8 * 8, _MOST_SEQS)
            default = EngineOptions().max_in_flight
            if room < 8 or room == default:
                continue
            # Requests beyond these wait in the engine; a run must send at least as many.
            yield {**tried.settings, "max_num_seqs": room, **({"max_in_flight": room} if room > default else {})}

    def _try(self, settings: Mapping[str, Any]) -> None:
        engine = replace(self._plan.engine, options=replace(self._plan.engine.options, **settings))
        try:
            engine.check()
        except UsageError as error:
            self.result.tried.append(Tried(settings=settings, problem=f"not available here: {error}"))
            return
        # One that would hardly be ready in time is not begun.
        if self._deadline - time.monotonic() <= self._longest * 0.8:
            self.result.tried.append(Tried(settings=settings, problem=_NO_TIME))
            return
        number, began = len(self.result.tried), time.monotonic()
        note = Tried(settings=settings).flags or "defaults"
        self._on_progress("settings", number, None, "", f"{note}: starting the engine")
        trial = Trial(
            engine=engine,
            generator=self._plan.generator,
            images=self._images,
            seconds=min(max(_LEAST_WINDOW_S, self._seconds * _WINDOW_PART), _MOST_WINDOW_S),
            log=self._logs / f"{number}.log",
        )

        def on_images(done: int) -> None:
            self._on_progress("settings", number, None, "", f"{note}: {count_of(done, 'image')}" if done else note)

        try:
            tried = Tried(settings=settings, measured=run_trial(trial, self._deadline, on_images))
        except TrialFailedError as error:
            tried = Tried(settings=settings, problem=_cause(str(error)))
        except KeyboardInterrupt:
            self.result.tried.append(Tried(settings=settings, problem="interrupted"))
            raise
        self._longest = max(self._longest, time.monotonic() - began)
        self.result.tried.append(tried)
        self._on_progress("settings", number + 1, None, "", note)


def _some_images(plan: RunPlan) -> tuple[tuple[bytes, ...], ...]:
    """The images of some samples, each sample with those that its dialogue is about."""
    samples, size = list[tuple[bytes, ...]](), 0
    for shard in plan.shards():
        for sample in shard.read():
            if size >= _IMAGE_BYTES:
                return tuple(samples)
            images = tuple(image.data for image in sample.images[: plan.engine.options.images_per_prompt])
            with suppress(UnreadableImage):
                for image in images:
                    decode_image(image)
                samples.append(images)
                size += sum(map(len, images))
    if not samples:
        raise UsageError(f"--images {plan.images}: none of the first {_IMAGES} images can be read.")
    return tuple(samples)


def _cause(problem: str) -> str:
    """The problem, in front of it what it means."""
    short_of_memory = any(word in problem.lower() for word in ("out of memory", "outofmemory", "no available memory"))
    return f"out of memory: {problem}" if short_of_memory else problem


def _rate(tried: Tried) -> float:
    return tried.measured.images_per_second if tried.measured else 0.0


def _figures(measured: Measured) -> list[str]:
    cache = "" if measured.kv_cache_tokens is None else f"{measured.kv_cache_tokens:,}"
    return [
        f"{measured.images_per_second:.1f}",
        f"{measured.output_tokens_per_second:.0f}",
        cache,
        f"{measured.start_seconds:.0f}",
    ]
