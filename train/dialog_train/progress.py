"""The progress bar of a training, on stderr where that is a terminal; else a line in the log for every point."""

import logging
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)


class StepProgress:
    """Counts steps; silent in all processes but one."""

    def __init__(self, total: int, done: int, is_main: bool) -> None:
        self._is_main, self._total = is_main, total
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not is_main or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=total, completed=done, said="")

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self) -> None:
        """A step is done."""
        self._bar.advance(self._task)

    def point(self, step: int, values: dict[str, float]) -> None:
        """Shows the means of the last steps."""
        said = f"loss {values['loss']:.4f}  {values['pairs_per_s']:.0f} pairs/s"
        self._bar.update(self._task, said=said)
        if self._is_main and self._bar.disable:
            _log.info("step %d of %d: %s", step, self._total, said)
