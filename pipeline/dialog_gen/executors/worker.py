"""A worker's side of a run, however its messages travel: through a pipe, or as the calls of an actor.

worker -> driver   Events, Ask (it can take a further shard), and as the last message Ended
driver -> worker   a shard for each Ask, or NoMore
"""

import threading
import traceback
from copy import copy
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from dialog_gen.core.errors import DialogGenError
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.base import EngineStarted, Event, Job, Worker

if TYPE_CHECKING:
    from dialog_gen.sources.base import InputShard

# How long a worker without work waits before it looks whether its engine still lives.
_WAIT_S = 0.25
_EVENTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Events:
    """Events in the order in which they happened."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """The worker can take a further shard. It asks again only after it got one."""


@dataclass(frozen=True, slots=True)
class NoMore:
    """Every shard is committed: the worker ends."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended."""

    error: Exception | None
    """Why it did not end well."""
    died: bool = False
    """Whether that concerns only this worker: its engine died, so that others can do its work."""


FromWorker = Events | Ask | Ended
ToWorker = "InputShard | NoMore"


class Link(Protocol):
    """A worker's connection to its driver."""

    def send(self, message: FromWorker) -> None:
        """Sends a message; always called by the same thread. May wait until the driver has time."""
        ...

    def receive(self, timeout_s: float) -> "InputShard | NoMore | None":
        """The next message; None if there is none within that time. Called by one thread at a time."""
        ...


def serve(job: Job, link: Link, worker: Worker) -> None:
    """Runs the job on the shards that the driver gives; returns when its last message is sent. Raises nothing."""
    outbox = SimpleQueue[FromWorker | Event]()
    sender = threading.Thread(target=_send_all, args=(outbox, link), name="sender", daemon=True)
    sender.start()
    outbox.put(_outcome(job, _Pulled(link, outbox), outbox, worker))
    sender.join()


def _outcome(job: Job, shards: "_Pulled", outbox: "SimpleQueue[FromWorker | Event]", worker: Worker) -> Ended:
    started = False

    def report(event: Event) -> None:
        nonlocal started
        started = started or isinstance(event, EngineStarted)
        outbox.put(event)

    try:
        job.run(shards, report, worker)
    except EngineDiedError as error:
        return Ended(_sendable(error), died=True)
    except DialogGenError as error:
        # An engine that does not start where another one did: its device is broken, or taken.
        return Ended(_sendable(error), died=type(error) is DialogGenError and not started)
    except BaseException as error:  # noqa: BLE001 - an error of this program, which the driver raises
        traceback.print_exc()
        return Ended(RuntimeError(f"{type(error).__name__}: {error}"))
    return Ended(None)


def _sendable(error: DialogGenError) -> DialogGenError:
    """The error, or one with the same message and exit code that can be pickled."""
    try:
        copy(error)  # a copy is made anew from the arguments, as on the other side
    except Exception:  # noqa: BLE001 - classes of other packages
        other = DialogGenError(str(error))
        other.exit_code = error.exit_code
        return other
    return error


class _Pulled:
    """The shards that the driver gives, as an iterator; None while there is none."""

    def __init__(self, link: Link, outbox: "SimpleQueue[FromWorker | Event]") -> None:
        self._link, self._outbox = link, outbox
        self._asked = False

    def __iter__(self) -> "_Pulled":
        return self

    def __next__(self) -> "InputShard | None":
        if not self._asked:
            self._outbox.put(Ask())
            self._asked = True
        message = self._link.receive(_WAIT_S)
        if message is None:
            return None
        if isinstance(message, NoMore):
            raise StopIteration
        self._asked = False
        return message


def _send_all(outbox: "SimpleQueue[FromWorker | Event]", link: Link) -> None:
    """Sends what is put into the outbox until `Ended`; events that wait together are sent together."""
    while True:
        message, events = outbox.get(), list[Event]()
        while not isinstance(message, Events | Ask | Ended):
            events.append(message)
            if outbox.empty() or len(events) == _EVENTS_AT_ONCE:
                break
            message = outbox.get()
        if events:
            link.send(Events(tuple(events)))
        if isinstance(message, Events | Ask | Ended):
            link.send(message)
            if isinstance(message, Ended):
                return
