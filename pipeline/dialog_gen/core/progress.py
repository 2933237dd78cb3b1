"""Progress of long work: the callback that library code calls, and the progress bars that the command lines show."""

import logging
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from dialog_gen.core.visible import visible

CHECKING = "checking model and images"
"""The first stage of a run, which begins before the packages of models and images are imported."""
_ECHO_COLUMNS = 3
"""Columns right of the bars that stay free: the terminal writes ^C there. In a full line it would begin another one,
and the bars would be drawn a line too low."""
_WINDOW_S = 60
_LEAST_S = 1
"""A shorter time says nothing: the first shards of a resumed stage may be there already."""


class OnProgress(Protocol):
    """A callback for progress. It is called often, so it must be fast."""

    def __call__(self, stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        """Reports that `done` of `total` units of a stage are done; `total` is None while it is not known.

        `unit` names what is counted, such as "images"; it is empty where, and as long as, a rate makes no sense. `note`
        is additional text, such as "3 rejected".
        """
        ...


def ignore_progress(stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
    """An `OnProgress` that does nothing."""


def counter(on_progress: OnProgress, stage: str, total: int, unit: str) -> Callable[[float], None]:
    """Makes a function that reports progress; it is called with the number of units done since its last call."""
    done = 0.0

    def advance(count: float) -> None:
        nonlocal done
        done += count
        on_progress(stage, round(done), total, unit)

    advance(0)
    return advance


class Window:
    """The rate of a stage over the last minute, which falls while nothing is done. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._moved = 0.0
        self._reports = deque[tuple[float, float]]()

    def add(self, done: float) -> None:
        """Takes a report of how much is done in all."""
        now = self._clock()
        if not self._reports or done > self._reports[-1][1]:
            self._moved = now
        self._reports.append((now, done))
        while len(self._reports) > 1 and self._reports[1][0] <= now - _WINDOW_S:
            self._reports.popleft()

    def rate(self, *, ended: bool = False) -> float | None:
        """Units per second; None before there is anything to measure. With `ended`, only until the last unit."""
        if not self._reports:
            return None
        (begin, first), (_, last) = self._reports[0], self._reports[-1]
        seconds = (self._moved if ended else self._clock()) - begin
        return (last - first) / seconds if last > first and seconds >= _LEAST_S else None


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        # What follows the last unit, such as the stop of an engine, does not make the work slower.
        unit, rate = task.fields["unit"], task.fields["window"].rate(ended=task.finished)
        return Text(f"{rate:.{0 if rate >= 100 else 1 if rate >= 1 else 2}f} {unit}/s" if unit and rate else "")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.fields["window"].rate()
        if task.finished:
            return Text("")
        if not rate or task.total is None:
            # The seconds go on, so that one sees that something is going on.
            return Text(f"{timedelta(seconds=int(task.elapsed or 0))}")
        return Text(f"{timedelta(seconds=math.ceil((task.total - task.completed) / rate))} left")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{'?' if task.total is None else f'{task.total:.0f}'}")


class _Narrow:
    """A renderable that leaves the last columns free."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return console.render(self._inner, options.update(width=max(1, options.max_width - _ECHO_COLUMNS)))


class _Bars(Progress):
    def get_renderables(self) -> Iterable[RenderableType]:
        return map(_Narrow, super().get_renderables())


@contextmanager
def progress_bars() -> Generator[OnProgress]:
    """Shows progress bars on stderr, one per stage; shows nothing if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield ignore_progress
        return
    # While an engine starts, stdout and stderr are redirected to a log. So the bars get a file descriptor of their own,
    # and rich must not redirect either.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        bars = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Count(),
            _Rate(),
            TextColumn("{task.fields[note]}", markup=False),
            _TimeLeft(),
            console=Console(file=stream),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        tasks = dict[str, TaskID]()

        def show(stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(visible(stage), total=total, unit="", note="", window=Window(monotonic))
            task = bars.tasks[tasks[stage]]
            if unit and not task.fields["unit"]:
                # The rate begins here: what was done before was not work of this kind.
                task.fields["window"] = Window(monotonic)
            task.fields["window"].add(done)
            bars.update(
                tasks[stage], completed=done, total=total, note=visible(note), unit=visible(unit) or task.fields["unit"]
            )

        with bars, _logs_above(bars, stream):
            yield show


class _AboveBars:
    """A stream whose lines are printed above the bars, and where stderr goes while that is redirected."""

    def __init__(self, bars: Progress, is_redirected: Callable[[], bool], own: TextIO) -> None:
        self._bars, self._is_redirected, self._own = bars, is_redirected, own

    def write(self, text: str) -> None:
        if self._is_redirected():
            self._own.write(text)
        else:
            self._bars.console.print(Text(text.removesuffix("\n")))

    def flush(self) -> None:
        self._own.flush()


@contextmanager
def _logs_above(bars: Progress, stream: TextIO) -> Generator[None]:
    """Log records are printed above the bars. Otherwise, they would continue the line of a bar, which is drawn again.

    While stderr is redirected, records go where it goes.
    """

    def is_redirected() -> bool:
        return not os.path.samestat(os.fstat(2), os.fstat(stream.fileno()))

    def to_console(handler: RichHandler, own: Console) -> Callable[[logging.LogRecord], bool]:
        def choose(_: logging.LogRecord) -> bool:
            handler.console = own if is_redirected() else bars.console
            return True

        return choose

    handlers = logging.getLogger().handlers
    rich = [handler for handler in handlers if isinstance(handler, RichHandler)]
    # Of exactly this class: a FileHandler is a StreamHandler, too.
    plain = [handler for handler in handlers if type(handler) is logging.StreamHandler and handler.stream is sys.stderr]
    choices = [(handler, handler.console, to_console(handler, handler.console)) for handler in rich]
    for handler, _, choose in choices:
        handler.addFilter(choose)
    for handler in plain:
        handler.setStream(_AboveBars(bars, is_redirected, sys.stderr))
    try:
        yield
    finally:
        for handler in plain:
            handler.setStream(sys.stderr)
        for handler, own, choose in choices:
            handler.removeFilter(choose)
            handler.console = own


@contextmanager
def without_transformers_bars() -> Generator[None]:
    """Hides the progress bars that transformers shows for each file that it reads or writes."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
