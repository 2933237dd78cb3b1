"""A `Map` in several processes of this machine, for work that one process cannot do fast enough.

Each process is a fresh interpreter, as those of `process.py`, and may have GPUs of its own.
"""

import os
import pickle
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dialog_gen.core.mapping import Advance, Item, Result, ignore_advance
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.process import PipedProcess, end_self

_ATTEMPTS = 3
_AHEAD = 4
"""So many items per process are begun before the first of them is yielded."""


class ProcessMap:
    """Applies a function in as many processes as there are environments; each is added to this process's."""

    elsewhere = True

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        self.environments = environments

    def __call__(
        self,
        function: Callable[[Item, Advance], Result],
        items: Iterable[Item],
        advance: Advance = ignore_advance,
        *,
        gpu: bool = False,
        threads: int = 1,
        shared: Sequence[Path] = (),
    ) -> Iterator[tuple[Item, Result]]:
        """Implements `Map`. Raises EngineDiedError if processes die three times with the same item."""
        with tempfile.TemporaryDirectory() as logs:
            work = _Work(function, items, advance, _AHEAD * len(self.environments))
            for number, environment in enumerate(self.environments):
                work.start(environment, Path(logs) / f"{number}.log")
            try:
                yield from work.results()
            finally:
                work.end()


class _Work:
    """The items, and the threads that talk to the processes."""

    def __init__(self, function: Any, items: Iterable[Any], advance: Advance, ahead: int) -> None:
        self._function, self._items, self._advance, self._ahead = function, enumerate(items), advance, ahead
        self._changed = threading.Condition()
        self._again = deque[tuple[int, Any, int]]()
        self._results = dict[int, tuple[Any, Any]]()
        self._error: BaseException | None = None
        self._taken = self._yielded = 0
        self._has_all = self._is_over = False
        self._threads = list[threading.Thread]()
        self._processes = set[_Process]()

    def start(self, environment: Mapping[str, str], log: Path) -> None:
        """Starts a thread, which starts processes as long as there are items."""
        thread = threading.Thread(target=self._talk, args=(environment, log), daemon=True)
        self._threads.append(thread)
        thread.start()

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Yields items and results in order; raises what a process raised."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._error or self._yielded in self._results or (self._has_all and self._done())
                )
                if self._error is not None:
                    raise self._error
                if self._yielded not in self._results:
                    return
                found = self._results.pop(self._yielded)
                self._yielded += 1
                self._changed.notify_all()
            yield found

    def end(self) -> None:
        """Ends all processes."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            for process in self._processes:
                process.stop()
        for thread in self._threads:
            thread.join()

    def _done(self) -> bool:
        return self._yielded == self._taken

    def _next(self) -> tuple[int, Any, int] | None:
        """Number, item and attempt; None if nothing is left to begin."""
        with self._changed:
            while not self._is_over and self._error is None:
                if self._again:
                    return self._again.popleft()
                if not self._has_all and self._taken < self._yielded + self._ahead:
                    try:
                        number, item = next(self._items)
                    except StopIteration:
                        self._has_all = True
                        self._changed.notify_all()
                    else:
                        self._taken += 1
                        return number, item, 1
                elif self._has_all and self._done():
                    return None
                else:
                    # Another process may die, and its item is begun again here.
                    self._changed.wait()
        return None

    def _talk(self, environment: Mapping[str, str], log: Path) -> None:
        process: _Process | None = None
        try:
            while (todo := self._next()) is not None:
                number, item, attempt = todo
                if process is None:
                    process = self._begin(environment, log)
                process.send(item)
                answer = process.answer(self._heard)
                with self._changed:
                    if isinstance(answer, _Done):
                        self._results[number] = item, answer.result
                    elif answer is not None:
                        raise answer
                    elif attempt < _ATTEMPTS:
                        self._again.append((number, item, attempt + 1))
                    elif not self._is_over:
                        said = log.read_text(errors="replace")[-500:].strip()
                        raise EngineDiedError(f"{_ATTEMPTS} processes died with the same item; the last said: {said}")
                    self._changed.notify_all()
                if answer is None:
                    self._drop(process)
                    process = None
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
        if process is not None:
            self._drop(process)

    def _begin(self, environment: Mapping[str, str], log: Path) -> "_Process":
        process = _Process("processes", "work", log, environment)
        with self._changed:
            self._processes.add(process)
        process.send(self._function)
        return process

    def _drop(self, process: "_Process") -> None:
        with self._changed:
            self._processes.discard(process)
        process.stop()
        process.end()

    def _heard(self, count: float) -> None:
        with self._changed:
            self._advance(count)


class _Done:
    def __init__(self, result: Any) -> None:
        self.result = result


class _Process(PipedProcess):
    """The driver's end of a process."""

    def send(self, message: object) -> None:
        """Sends a message, with the values of its tensors. A process that has ended gets nothing."""
        with suppress(OSError):
            self._pipe.send_bytes(pickle.dumps(message))

    def answer(self, advance: Advance) -> "_Done | BaseException | None":
        """The result of the item that was sent, or what the function raised; None if the process has died."""
        try:
            while isinstance(message := _received(self._pipe), float):
                advance(message)
        except (EOFError, OSError):
            return None
        return message


def work(pipe: Connection) -> None:
    """The process. Does not return."""
    sending = threading.Lock()

    def send(message: object) -> None:
        with sending:
            pipe.send_bytes(pickle.dumps(message))

    try:
        function = _received(pipe)
        while True:
            item = _received(pipe)
            try:
                answer: object = _Done(function(item, lambda count: send(float(count))))
            except Exception as error:  # noqa: BLE001 - raised by the driver
                answer = error
            send(answer)
    except (EOFError, OSError):
        end_self(1)


def _received(pipe: Connection) -> Any:
    # `Connection.recv` would take tensors from memory that both processes share, which needs a secret of both.
    return pickle.loads(pipe.recv_bytes())  # noqa: S301 (from our own process)


def processes_for(cores: int | None = None) -> int:
    """The number of processes that use this machine's cores, at most `cores` of them."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(found, cores or found))
