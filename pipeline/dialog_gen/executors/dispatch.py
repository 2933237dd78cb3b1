"""The driver's side of several workers: it hands out shards, passes events on, and knows what a dead worker loses."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from dialog_gen.core.plural import count_of
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.base import EngineStarted, Report, ShardStaged, Worker, WorkerDied
from dialog_gen.executors.worker import Events, NoMore

if TYPE_CHECKING:
    from dialog_gen.sources.base import InputShard

_DEATHS = 3
"""The run ends if this many workers die in a row without a committed shard, or with the same shard."""

Give = Callable[["InputShard | NoMore"], None]


def passed_on(shards: Collection[str]) -> str:
    """What becomes of the shards that a dead worker loses, such as "1 shard goes to others"."""
    return f"{count_of(len(shards), 'shard')} {'goes' if len(shards) == 1 else 'go'} to others"


def _staged(event: Any) -> str | None:
    return event.staged.manifest.shard if isinstance(event, ShardStaged) else None


class Dispatcher:
    """Gives each shard to one worker at a time until it is committed. For several threads, one per worker.

    A worker that asks while no shard is left waits: another one may die, and lose its shards. When all shards are
    committed, all workers are told that there are no more.
    """

    def __init__(
        self,
        shards: "Iterator[InputShard]",
        report: Report,
        *,
        completes: Callable[[Any], str | None] = _staged,
        may_die_early: bool = False,
    ) -> None:
        """`report` commits staged shards, as in `Executor.run`.

        `completes` gives the name of the shard that an event completes, None if it completes none. With
        `may_die_early`, the death of a worker before any engine has started is no reason to give up.
        """
        self._shards, self._report, self._completes = shards, report, completes
        self._ready = deque["InputShard"]()
        self._held: dict[Worker, dict[str, InputShard]] = {}
        self._asking: dict[Worker, Give] = {}
        self._exhausted = self._has_started = False
        self._may_die_early = may_die_early
        self._deaths = Counter[str]()
        self._in_a_row = 0
        self._state = threading.Lock()
        # The source is read by one thread at a time, which may take long.
        self._serving = threading.Lock()

    def prepare(self) -> bool:
        """Takes one further shard from the source, for any worker; False if there is none."""
        with self._serving:
            shard = next(self._shards, None)
            with self._state:
                if shard is None:
                    self._exhausted = True
                else:
                    self._ready.append(shard)
        return shard is not None

    @property
    def has_started(self) -> bool:
        """Whether an engine has started."""
        return self._has_started

    @property
    def is_done(self) -> bool:
        """Whether every shard is committed."""
        with self._state:
            return self._exhausted and not self._ready and not any(self._held.values())

    def ask(self, worker: Worker, give: Give) -> None:
        """Calls `give` once, now or later and from any thread, with a shard for the worker or with NoMore."""
        with self._state:
            self._asking[worker] = give
        self._serve()

    def events(self, worker: Worker, message: Events) -> None:
        """Passes the events of a worker on; returns when the staged shards among them are committed."""
        for event in message.events:
            self._report(event)
            self._has_started = self._has_started or isinstance(event, EngineStarted)
            if (name := self._completes(event)) is not None:
                with self._state:
                    self._held[worker].pop(name, None)
                    self._in_a_row = 0
                    # As long as the source has shards, nobody waits for this commit.
                    exhausted = self._exhausted
                if exhausted:
                    self._serve()

    def lost(self, worker: Worker, error: Exception, log: object, *, with_another: bool = False) -> tuple[str, ...]:
        """The shards of a worker that died go to others; returns their names.

        `with_another` says that it died of what another one died of: only one of them counts as dead.

        Raises EngineDiedError if too many died without any success, or with one shard; and `error` if no engine of this
        run has started.
        """
        with self._state:
            self._asking.pop(worker, None)
            held = self._held.pop(worker, {})
            self._ready.extend(held.values())
            self._deaths.update(held.keys())
            self._in_a_row += not with_another
            fatal = [name for name in held if self._deaths[name] >= _DEATHS]
        if not self._has_started and not self._may_die_early:
            raise error
        if fatal:
            said = f"{_DEATHS} engines died while they worked on shard {' or '.join(fatal)}; the last one: "
        elif self._in_a_row >= _DEATHS:
            said = f"{_DEATHS} engines died one after the other, and none finished a shard; the last one: "
        else:
            died = WorkerDied(shards=tuple(held), cause=str(error), engine=worker.engine)
            self._report(died)
            self._serve()
            return died.shards
        raise EngineDiedError(
            f"{said}{error} (log: {log}). Finished shards are kept: run again to continue."
        ) from error

    def _serve(self) -> None:
        with self._serving:
            while self._serve_one():
                pass

    def _serve_one(self) -> bool:
        """Answers the worker that asked first; False if nobody asks, or if nobody can be answered yet."""
        with self._state:
            worker = next(iter(self._asking), None)
            shard = self._ready.popleft() if worker and self._ready else None
        if worker is None:
            return False
        if shard is None and not self._exhausted:
            shard = next(self._shards, None)
        with self._state:
            if shard is None:
                self._exhausted = True
                if any(self._held.values()):
                    return False
                answer, gives = NoMore(), list(self._asking.values())
                self._asking.clear()
            elif give := self._asking.pop(worker, None):
                self._held.setdefault(worker, {})[shard.name] = shard
                answer, gives = shard, [give]
            else:  # it died meanwhile
                self._ready.append(shard)
                return True
        for give in gives:
            give(answer)
        return True
