"""Progress of long work: the callback that libraries call, and the one bar that the command lines show for it."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

_SPEED_WINDOW_S = 60


class OnProgress(Protocol):
    """What is called while long work is done; it must be fast."""

    def __call__(self, stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        """`done` of `total` units (None: not known yet) of a stage are done.

        `unit` names what is counted, such as "images", where a rate makes sense; `note` is anything worth telling
        beside it, such as "3 rejected".
        """
        ...


def ignore_progress(stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
    """An `OnProgress` for callers that show nothing."""


class _Rate(ProgressColumn):
    """Units a second over the last minute."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        return Text(f"{task.speed:.1f} {unit}/s" if unit and task.speed else "")


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{'?' if task.total is None else f'{task.total:.0f}'}")


@contextmanager
def progress_bars() -> Generator[OnProgress]:
    """Bars on stderr, one for each stage, where that is a terminal; elsewhere nothing is shown."""
    if not sys.stderr.isatty():
        yield ignore_progress
        return
    # A descriptor of its own, and no redirection by rich: while an engine starts, the usual ones lead to a log.
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
