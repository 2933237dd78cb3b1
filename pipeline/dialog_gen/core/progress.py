"""Progress of long work: the callback that library code calls, and the progress bars that the command lines show."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

_SPEED_WINDOW_S = 60


class OnProgress(Protocol):
    """A callback for progress. It is called often, so it must be fast."""

    def __call__(self, stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        """Reports that `done` of `total` units of a stage are done; `total` is None while it is not known.

        `unit` names what is counted, such as "images"; it is empty where a rate makes no sense. `note` is additional
        text, such as "3 rejected".
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


class _Rate(ProgressColumn):
    """Units per second over the last minute."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        return Text(f"{task.speed:.1f} {unit}/s" if unit and task.speed else "")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{'?' if task.total is None else f'{task.total:.0f}'}")


@contextmanager
def progress_bars() -> Generator[OnProgress]:
    """Shows progress bars on stderr, one per stage; shows nothing if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield ignore_progress
        return
    # While an engine starts, stdout and stderr are redirected to a log. So the bars get a file descriptor of their own,
    # and rich must not redirect either.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Count(),
            _Rate(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=Console(file=stream),
            redirect_stdout=False,
            redirect_stderr=False,
            speed_estimate_period=_SPEED_WINDOW_S,
        )
        tasks = dict[str, TaskID]()

        def show(stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, unit=unit, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        with bars:
            yield show
