"""The actors of one piece of work on a Ray cluster: they are started as there is room, and replaced when they die."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.base import Job, Worker
from dialog_gen.executors.dispatch import Dispatcher, passed_on
from dialog_gen.executors.ray.actor import Actor
from dialog_gen.executors.worker import Ask, Ended, Events, FromWorker

_LOOK_S = 2.0  # how often the resources of the cluster are looked at
_CLOSE_S = 60
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What an actor needs, and how many actors there may be."""

    gpus: int = 0
    most: int | None = None
    """The maximum number of actors; None is as many as the cluster has room for at the moment."""

    def actors(self, cluster: Mapping[str, float]) -> int:
        """The number of actors on a cluster with these resources; at least one, which may have to wait for room."""
        if self.most is not None:
            return self.most
        return max(1, int(cluster.get("GPU", 0) // self.gpus if self.gpus else cluster.get("CPU", 0)))


@dataclass(slots=True, eq=False)
class _Member:
    worker: Worker
    actor: Any
    answer: Any
    """What the call of `Actor.messages` that is under way will return."""
    begun: bool = False


class Pool:
    """The actors that do a job. Used by one thread."""

    def __init__(
        self,
        job: Job,
        dispatcher: Dispatcher,
        resources: Resources,
        *,
        worker_of: Callable[[int], Worker],
        shared: Mapping[Path, int],
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`worker_of` makes the worker of a number; `shared` are the files that every machine must see, see `seen`.

        Nothing is handed out while `has_room` says no.
        """
        self._job, self._dispatcher, self._resources = job, dispatcher, resources
        self._worker_of, self._shared, self._has_room = worker_of, shared, has_room
        self._members = list[_Member]()
        self._asking = list[_Member]()
        self._started = self._lost = self._most = 0
        self._looked = -math.inf

    def steps(self) -> Iterator[None]:
        """Works until everything is complete; yields now and then. Ends the actors in any case.

        Raises what the job raises, what `Dispatcher.lost` raises, and UsageError if an actor cannot be started.
        """
        import ray

        job = ray.put(self._job)
        deadline = math.inf
        try:
            while time.monotonic() < deadline:
                if self._dispatcher.is_done:
                    deadline = min(deadline, time.monotonic() + _CLOSE_S)
                    # The cluster may never have room for them.
                    for member in [member for member in self._members if not member.begun]:
                        self._remove(member)
                self._start_missing(job)
                self._hand_out()
                if not self._members:
                    break
                answers = {member.answer: member for member in self._members}
                ready, _ = ray.wait(list(answers), timeout=_LOOK_S)
                for member in (answers[answer] for answer in ready):
                    self._take(member)
                yield
        finally:
            for member in self._members:
                ray.kill(member.actor)

    def _start_missing(self, job: Any) -> None:
        import ray

        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            self._most = self._resources.actors(ray.cluster_resources())
        while len(self._members) < self._most and not self._dispatcher.is_done:
            if self._lost:
                self._lost -= 1
            elif not self._dispatcher.prepare():
                return
            # Two threads: one waits for messages while the other takes one.
            options: dict[str, Any] = {"num_cpus": 1, "num_gpus": self._resources.gpus, "max_concurrency": 2}
            worker = self._worker_of(self._started)
            made: Any = ray.remote(**options)(Actor)
            actor = made.remote(job, worker, str(Path.cwd()), self._shared)
            self._members.append(_Member(worker, actor, actor.messages.remote()))
            self._started += 1

    def _hand_out(self) -> None:
        while self._asking and self._has_room():
            member = self._asking.pop(0)
            self._dispatcher.ask(member.worker, member.actor.give.remote)

    def _take(self, member: _Member) -> None:
        """Takes the messages of an actor."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            messages: list[FromWorker] = ray.get(member.answer)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._died(member, _cause(error))
            return
        member.begun = True
        for message in messages:
            match message:
                case Events():
                    self._dispatcher.events(member.worker, message)
                case Ask():
                    self._asking.append(member)
                case Ended(error=error, died=died):
                    if error is None:
                        self._remove(member)
                    elif died:
                        self._died(member, error)
                    else:
                        raise error
                    return
        member.answer = member.actor.messages.remote()

    def _died(self, member: _Member, cause: Exception) -> None:
        self._remove(member)
        if not isinstance(cause, EngineDiedError) and not self._dispatcher.has_started:
            raise cause  # it would be the same on every machine
        lost = self._dispatcher.lost(member.worker, cause, self._job.log(member.worker))
        self._lost += 1
        _log.warning("a worker on Ray died: %s; %s", cause, passed_on(lost))

    def _remove(self, member: _Member) -> None:
        import ray

        ray.kill(member.actor)
        self._members.remove(member)
        self._asking = [other for other in self._asking if other is not member]


def _cause(error: Exception) -> Exception:
    """What ended an actor; an actor that cannot be made is no accident."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in lines[0] or "runtime_env" in lines[0]:
        return UsageError(f"Ray cannot start a worker: {lines[-1]}. Every machine needs the same dialog-gen.")
    return EngineDiedError(f"its process is gone ({lines[0].rstrip('.')})")
