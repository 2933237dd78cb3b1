"""The progress bar of a run: images/s, rejects and the time left, on stderr where that is a terminal."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dialog_gen.core.errors import DialogGenError
from dialog_gen.dataset.folder import ShardManifest
from dialog_gen.sources.base import InputShard

_log = logging.getLogger(__name__)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "- images/s")


class RunProgress:
    """Counts what a run reports; a line a shard in the log where there is no terminal."""

    def __init__(self, shards: Callable[[], Iterator[InputShard]]) -> None:
        """`shards` opens the input a second time: it is counted beside the run, as it is never listed whole."""
        self._interactive = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.fields[images]}"),
            _Speed(),
            TextColumn("{task.fields[lost]}"),
            TimeRemainingColumn(),
            # A descriptor of its own: the engine's start sends the usual one to a log.
            console=Console(file=os.fdopen(os.dup(sys.stderr.fileno()), "w")) if self._interactive else None,
            disable=not self._interactive,
            speed_estimate_period=60,
        )
        self._task = self._progress.add_task("starting the engine", total=None, images="?", lost="")
        self._lost = {"rejected": 0, "unreadable": 0}
        self._shards = shards
        self._stop = threading.Event()
        self._counter = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        if self._interactive:
            self._counter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._progress.stop()

    def row(self, status: str) -> None:
        """An image is done."""
        if status in self._lost:
            self._lost[status] += 1
        lost = ", ".join(f"{count} {name}" for name, count in self._lost.items() if count)
        self._progress.update(self._task, advance=1, description="dialogues", lost=lost)

    def skip(self, images: int) -> None:
        """A shard was complete already."""
        self._progress.update(self._task, advance=images)

    def shard(self, manifest: ShardManifest) -> None:
        """A shard became part of the dataset."""
        level = logging.DEBUG if self._interactive else logging.INFO
        _log.log(
            level,
            "shard %s: %d accepted, %d rejected, %d unreadable",
            manifest.shard,
            manifest.accepted,
            manifest.rejected,
            manifest.unreadable,
        )

    def _count(self) -> None:
        images = 0
        try:
            for shard in self._shards():
                if self._stop.is_set():
                    return
                images += shard.count
        except DialogGenError:
            return  # the run itself will meet it and say so
        self._progress.update(self._task, total=images, images=images)
