"""Watches an engine: one that hangs ends the run after a stated time, and Ctrl-C ends it at once.

A thread that hangs cannot be stopped, and an event loop that is blocked cannot watch itself. So an engine works in a
daemon thread, and the thread that waits for it counts the time without an answer. An engine that hangs is given up: its
processes are killed, and its thread is left to itself.
"""

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from dialog_gen.core.errors import DialogGenError
from dialog_gen.engines.base import (
    Answer,
    Engine,
    EngineDiedError,
    EngineHangsError,
    RefusedRequestError,
    Request,
)
from dialog_gen.engines.load import StageClock
from dialog_gen.engines.processes import children, kill_children, reap_children

T = TypeVar("T")

START_TIMEOUTS = 4
"""An engine may take this many times its timeout to start."""
_CLOSE_S = 60
# For the thread of an engine that was killed, or of an interrupted run.
_GRACE_S = 5
_START_GRACE_S = 2
_POLL_S = 1.0
_SHOWN = 200
_SURROGATE = re.compile("[\ud800-\udfff]")

_log = logging.getLogger(__name__)


def start_watched(start: Callable[[], T], timeout_s: float) -> T:
    """Returns what `start` returns, and raises what it raises.

    Raises EngineHangsError if that takes `START_TIMEOUTS` times `timeout_s`. Then, and after Ctrl-C, the processes that
    were started meanwhile are killed.
    """
    before, result = children(), Future[T]()
    limit = START_TIMEOUTS * timeout_s

    def work() -> None:
        try:
            result.set_result(start())
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            result.set_exception(error)

    threading.Thread(target=work, name="engine", daemon=True).start()
    try:
        if not _is_done(result, limit, lambda: True):
            raise EngineHangsError(f"it was not ready after {limit:g} s (four times --engine-timeout) and was killed")
    except (EngineHangsError, KeyboardInterrupt):
        kill_children(keep=before)
        wait([result], _START_GRACE_S)
        reap_children(keep=before)
        raise
    return result.result()


class EngineLoop:
    """An event loop in a thread of its own, in which one engine works. A context manager: it closes the engine."""

    def __init__(self, engine: Engine, timeout_s: float, keep: set[int]) -> None:
        """`timeout_s`: `EngineOptions.timeout_s`; `keep`: child processes that were there before the engine."""
        self.engine = _Counting(engine)
        self._timeout_s, self._keep = timeout_s, keep
        self._given_up = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> "EngineLoop":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except EngineHangsError as hangs:
            if isinstance(error, Exception):
                raise EngineHangsError(str(error)) from error
            if error is None:
                raise hangs from None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns what `work` returns, and raises what it raises; it uses `engine`.

        Raises EngineHangsError if the engine has requests and answers none for the timeout. After Ctrl-C, `work` is
        cancelled.
        """
        answers = self.engine.answers

        def is_stuck() -> bool:
            nonlocal answers
            before, answers = answers, self.engine.answers
            return self.engine.waiting > 0 and before == answers

        return self._wait(
            work,
            self._timeout_s,
            is_stuck,
            f"the engine answered none of its requests for {self._timeout_s:g} s (--engine-timeout) and was killed",
        )

    def close(self) -> None:
        """Stops the engine and the thread. Raises EngineHangsError if the engine does not stop within a minute."""
        if self._given_up:
            return
        limit = min(_CLOSE_S, self._timeout_s)
        self._wait(self._end(), limit, lambda: True, f"the engine did not stop within {limit:g} s and was killed")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE_S)
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T], limit_s: float, is_stuck: Callable[[], bool], said: str) -> T:
        tasks = list[asyncio.Task[Any]]()

        async def noted() -> T:
            tasks.append(asyncio.current_task())  # type: ignore[arg-type]
            return await work

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        future = asyncio.run_coroutine_threadsafe(noted(), self._loop)
        try:
            if not _is_done(future, limit_s, is_stuck, self._thread):
                raise EngineHangsError(said)
        except (EngineHangsError, KeyboardInterrupt) as error:
            hangs = isinstance(error, EngineHangsError)
            if hangs:
                kill_children(self._keep)
            else:
                _log.info("interrupted: stopping the engine")
            self._loop.call_soon_threadsafe(cancel)
            self._given_up = bool(wait([future], _GRACE_S).not_done) or hangs
            if self._given_up:
                kill_children(self._keep)
                reap_children(self._keep)
            raise
        return future.result()

    async def _end(self) -> None:
        await self.engine.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        loop = asyncio.get_running_loop()
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()


class _Counting:
    """An engine, with the number of its answers, and of the requests that wait for one and how long they do."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.version, self.deterministic = engine.name, engine.version, engine.deterministic
        self.waiting = self.answers = 0
        self.clock = StageClock()
        self._engine = engine

    async def answer(self, request: Request) -> Answer:
        """As `Engine.answer`; an error counts as an answer. Any error that an engine must not raise ends it."""
        self.waiting += 1
        try:
            with self.clock:
                return _checked(await self._engine.answer(request))
        except RefusedRequestError as refused:
            raise RefusedRequestError(_recordable(refused.reason), _recordable(str(refused.detail))) from refused
        except (DialogGenError, asyncio.CancelledError):
            raise
        # Libraries raise anything; Ctrl-C never arrives in this thread.
        except BaseException as error:
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise EngineDiedError(f"the engine failed: {said}") from error
        finally:
            self.waiting -= 1
            self.answers += 1

    async def close(self) -> None:
        """As `Engine.close`."""
        await self._engine.close()


def _checked(answer: Any) -> Answer:
    """The answer, if it is one that can be recorded. Raises TypeError for anything else."""
    is_answer = isinstance(answer, Answer)
    said: list[Any] = [answer.text, answer.finish_reason] if is_answer else []
    counts: list[Any] = [answer.output_tokens, answer.prompt_tokens] if is_answer else []
    if not is_answer or not all(isinstance(text, str) for text in said) or not min(counts) >= 0:
        raise TypeError(f"{str(answer)[:_SHOWN]!r} is no answer")
    if not any(map(_SURROGATE.search, said)):
        return answer
    return replace(answer, text=_recordable(answer.text), finish_reason=_recordable(answer.finish_reason))


def _recordable(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which JSON may hold, but UTF-8 not."""
    return _SURROGATE.sub("\ufffd", text)


def _is_done(
    future: Future[Any], limit_s: float, is_stuck: Callable[[], bool], thread: threading.Thread | None = None
) -> bool:
    """Waits for the future; False if `is_stuck` says so for `limit_s` seconds in a row.

    Time is counted in steps, so that it stops while the process is suspended. Raises EngineDiedError if `thread`, which
    should set the result, ends without it.
    """
    step, stuck = min(_POLL_S, limit_s / 4), 0.0
    while not wait([future], step).done:
        stuck = stuck + step if is_stuck() else 0.0
        if stuck >= limit_s:
            return False
        if thread is not None and not thread.is_alive() and not future.done():
            raise EngineDiedError("the engine ended its thread")
    return True
