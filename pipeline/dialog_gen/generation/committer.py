"""The driver's side of a run: it says which shards have to be made, and commits those that workers have staged."""

import threading
from collections.abc import Iterator

from dialog_gen.dataset.folder import ShardManifest
from dialog_gen.dataset.writer import DatasetWriter
from dialog_gen.executors.base import Event, Report, RowDone, ShardCommitted, ShardSkipped, ShardStaged
from dialog_gen.generation.refusals import Refusals
from dialog_gen.sources.base import InputShard


class Committer:
    """Adds the shards of a run to its dataset. Its `event` is the `Report` of an executor."""

    def __init__(self, store: DatasetWriter, report: Report, *, keep_going: bool = False) -> None:
        """`report` gets the events of the run one at a time, from any thread; ShardCommitted in place of ShardStaged.

        `keep_going` says whether the run goes on if all of the first images are refused for one reason.
        """
        self._store, self._report = store, report
        self._refusals = Refusals(keep_going=keep_going)
        self._redone = set[str]()
        self._lock = threading.Lock()

    def incomplete(self, shards: Iterator[InputShard]) -> Iterator[InputShard]:
        """The shards that have to be made. Skips those that are complete, and those that another process makes."""
        for shard in shards:
            if found := self._store.finished(shard):
                self._store.update_unused(found, shard.unused)
                self._refusals.settled = self._refusals.settled or found.accepted > 0
                self._tell(_skipped(shard, found))
                continue
            if not self._store.claim(shard):
                continue  # another process makes this shard, or has just made it
            if self._store.exists(f"shards/{shard.name}.json"):
                self._redone.add(shard.name)
            yield shard

    def event(self, event: Event) -> None:
        """Commits a staged shard, and reports the event; several threads may call it.

        Raises DialogGenError if the dataset cannot be written, and FailedCheckError if the first images of the run are
        all refused for one reason and no earlier shard has a dialogue.
        """
        if isinstance(event, ShardStaged):
            manifest = self._store.commit(event.staged)
            event = ShardCommitted(
                shard=manifest.shard,
                accepted=manifest.accepted,
                rejected=manifest.rejected,
                unreadable=manifest.unreadable,
                redone=manifest.shard in self._redone,
                engine=event.engine,
            )
        self._tell(event)

    def _tell(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, RowDone):
                self._refusals.add(event)
            self._report(event)


def _skipped(shard: InputShard, found: ShardManifest) -> ShardSkipped:
    return ShardSkipped(shard=shard.name, images=shard.count, rejected=found.rejected, unreadable=found.unreadable)
