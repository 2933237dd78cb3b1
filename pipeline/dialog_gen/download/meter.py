"""The progress of a download: URLs done, images/s, the fraction stored and the time left."""

import logging
import sys
import time
from collections import Counter
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dialog_gen.download.outcomes import Outcome

_LOG_EVERY_S: Final = 60

_log = logging.getLogger(__name__)


class Meter:
    """A progress bar where stderr is a terminal, a line a minute in the log where it is not."""

    def __init__(self, description: str, rows: int) -> None:
        self._description = description
        self._rows = rows
        self._outcomes: Counter[Outcome] = Counter()
        self._interactive = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._interactive,
        )
        self._task = self._progress.add_task(description, total=rows, facts="")

    def __enter__(self) -> "Meter":
        self._progress.start()
        self._began = self._logged = time.monotonic()
        self._found = -1
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, outcomes: Counter[Outcome]) -> None:
        """More URLs are done. The first call brings what was done before, which does not count as speed."""
        self._outcomes += outcomes
        done = self._outcomes.total()
        if self._found < 0:
            self._found = done
        now = time.monotonic()
        fetched = done - self._outcomes["duplicate_url"]
        speed = (done - self._found) / max(now - self._began, 1e-3)
        facts = f"{speed:.0f} images/s, {self._outcomes['success'] / max(fetched, 1):.0%} stored"
        self._progress.update(self._task, completed=done, facts=facts)
        if not self._interactive and now - self._logged > _LOG_EVERY_S:
            self._logged = now
            _log.info("%s: %d of %d URLs, %s", self._description, done, self._rows, facts)
