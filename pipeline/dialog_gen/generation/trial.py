"""Measures an engine with one choice of settings, in a process of its own: only its end frees all of its memory."""

import asyncio
import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import DialogGenError
from dialog_gen.engines.base import Answer, Engine, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation.dialogue import Dialogue, DialogueGenerator
from dialog_gen.sources.images import decode_image

_PREPARED = 64
"""Dialogues in addition to those in the engine, as in a run."""
_STOP_S = 10
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One engine with its settings, and the dialogues with which it is measured. Plain data for another process."""

    engine: EngineSpec
    generator: DialogueGenerator
    images: tuple[tuple[bytes, ...], ...]
    """Of each sample; readable ones. They are used again and again, under other names, so that no cache has them."""
    seconds: float
    """The time of the measurement, after a warm-up of as many dialogues as are in flight."""
    log: Path
    """The file for the engine's output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a trial has measured."""

    images_per_second: float
    output_tokens_per_second: float
    images: int
    """The number of images that were measured."""
    seconds: float
    start_seconds: float
    kv_cache_tokens: int | None
    """The room in the engine's KV cache; None if the engine does not say."""
    request_tokens: float
    """The mean number of tokens of a request, prompt and answer together; 0 if the engine does not say."""


class TrialFailedError(DialogGenError):
    """The engine did not start with these settings, or did not answer; the message says why."""


def run_trial(trial: Trial, deadline: float, on_images: Callable[[int], None]) -> Measured:
    """Measures in a child process, which has ended when this returns; calls `on_images` with the images done so far.

    `deadline` is a value of `time.monotonic`. Raises TrialFailedError, also at the deadline.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_work, args=(trial, theirs), name="trial")
    child.start()
    theirs.close()
    try:
        while (left := deadline - time.monotonic()) > 0:
            if not ours.poll(min(left, _POLL_S)):
                continue
            kind, value = ours.recv()
            if kind == "images":
                on_images(value)
            elif kind == "failed":
                raise TrialFailedError(value)
            else:
                return value
        raise TrialFailedError("not ready when the time was over")
    except EOFError:
        child.join(_STOP_S)
        raise TrialFailedError(f"its process ended with exit code {child.exitcode}") from None
    finally:
        # A child that has sent its result ends by itself.
        ours.close()
        child.join(_STOP_S)
        if child.is_alive():
            child.kill()  # the engine's own processes end with it
            child.join()


def _work(trial: Trial, pipe: "Connection[Any, Any]") -> None:
    """The child process: sends ("images", n) again and again, then ("measured", Measured) or ("failed", why)."""
    # Ctrl-C arrives at the parent, which closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    try:
        result: tuple[str, Any] = ("measured", asyncio.run(_measured(trial, lambda n: pipe.send(("images", n)))))
    except DialogGenError as error:
        result = ("failed", str(error))
    except BaseException as error:  # noqa: BLE001 - libraries raise errors of any kind
        result = ("failed", f"{type(error).__name__}: {error}")
    with suppress(OSError):
        pipe.send(result)
    os._exit(0)  # threads of an engine that failed may hang


def _end_with_parent(pipe: "Connection[Any, Any]") -> None:
    with suppress(OSError, EOFError):
        pipe.recv()
    os._exit(1)


async def _measured(trial: Trial, on_images: Callable[[int], None]) -> Measured:
    began = time.perf_counter()
    engine = await asyncio.to_thread(trial.engine.start, trial.log)
    start_seconds = time.perf_counter() - began
    load = _Load(trial, engine)
    try:
        return await load.measured(start_seconds, on_images)
    finally:
        await engine.close()


class _Load:
    """Keeps an engine full of dialogues."""

    def __init__(self, trial: Trial, engine: Engine) -> None:
        self._trial, self._engine = trial, _Weighed(engine)
        self._cache = getattr(engine, "kv_cache_tokens", None)  # engines may leave it out
        self._numbers = itertools.count()
        self._done: list[tuple[float, int]] = []
        """For each dialogue, the time of its end and its output tokens."""
        self._decoder = ThreadPoolExecutor(1, "decoder")

    async def measured(self, start_seconds: float, on_images: Callable[[int], None]) -> Measured:
        """Raises TrialFailedError if the engine refuses an image."""
        in_flight = self._trial.engine.options.max_in_flight + _PREPARED
        tasks = [asyncio.create_task(self._dialogues()) for _ in range(in_flight)]
        try:
            while len(self._done) < in_flight:
                await self._pause(tasks, on_images)
            first, warm = len(self._done) - 1, self._done[-1][0]
            # At least another round of dialogues: those that began together end together.
            while time.perf_counter() - warm < self._trial.seconds or len(self._done) - first <= in_flight:
                await self._pause(tasks, on_images)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._decoder.shutdown(wait=False, cancel_futures=True)
        images, seconds = len(self._done) - 1 - first, self._done[-1][0] - warm
        tokens = sum(count for _, count in self._done[first + 1 :])
        return Measured(
            images_per_second=images / seconds,
            output_tokens_per_second=tokens / seconds,
            images=images,
            seconds=seconds,
            start_seconds=start_seconds,
            kv_cache_tokens=self._cache,
            request_tokens=self._engine.mean_tokens(),
        )

    async def _pause(self, tasks: list[asyncio.Task[None]], on_images: Callable[[int], None]) -> None:
        ended, _ = await asyncio.wait(tasks, timeout=_POLL_S / 10, return_when=asyncio.FIRST_EXCEPTION)
        for task in ended:
            task.result()
        on_images(len(self._done))

    async def _dialogues(self) -> None:
        loop, samples = asyncio.get_running_loop(), self._trial.images
        while True:
            number = next(self._numbers)
            data = samples[number % len(samples)]
            images = [await loop.run_in_executor(self._decoder, decode_image, image) for image in data]
            name = f"{hashlib.sha256(b''.join(data)).hexdigest()}-{number // len(samples)}"
            dialogue = await self._trial.generator.generate(self._engine, tuple(images), name)
            if refused := _refusal(dialogue):
                raise TrialFailedError(refused)
            self._done.append((time.perf_counter(), dialogue.output_tokens))


class _Weighed:
    """An engine, with the number of tokens of its requests."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.version, self.deterministic = engine.name, engine.version, engine.deterministic
        self._engine = engine
        self._requests = self._tokens = 0

    async def answer(self, request: Request) -> Answer:
        """As `Engine.answer`."""
        answer = await self._engine.answer(request)
        self._requests += 1
        self._tokens += (answer.prompt_tokens + answer.output_tokens) if answer.prompt_tokens else 0
        return answer

    async def close(self) -> None:
        """As `Engine.close`."""
        await self._engine.close()

    def mean_tokens(self) -> float:
        """The mean length of a request, prompt and answer together."""
        return self._tokens / self._requests if self._requests else 0.0


def _refusal(dialogue: Dialogue) -> str | None:
    """Why the engine did not answer; a malformed answer is one."""
    if dialogue.reason is None or not dialogue.reason.startswith("engine_"):
        return None
    return f"{dialogue.reason}: {dialogue.detail}"
