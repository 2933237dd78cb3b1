"""The interface of an executor, which runs a job on shards, and the registry of executors.

An executor decides where a job runs: in this process, in several processes, or on several machines. It gives each shard
to one worker at a time. The process that the user starts is the driver: it lists the shards, hands them out, and
commits what workers stage. Jobs, shards and the reported events are plain data that can be pickled between processes of
one run.

Other packages add executors through entry points of the group `dialog_gen.executors`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from dialog_gen.core.errors import UsageError
from dialog_gen.core.mapping import Map, map_here
from dialog_gen.core.registry import Registry
from dialog_gen.engines.base import CoreAddress, EngineCore, ServerUse
from dialog_gen.executors.load import WorkerLoad

if TYPE_CHECKING:
    from dialog_gen.dataset.shard_writer import StagedShard
    from dialog_gen.sources.base import InputShard


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStarted:
    """A worker's engine is ready to answer."""

    name: str
    version: str
    deterministic: bool
    seconds: float
    """The duration of the start."""
    engine: int = 0
    """The number of the engine, from 0."""
    gpus: int = 0
    """The number of GPUs that the engine uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMeasured:
    """What a worker did since it last said so."""

    load: WorkerLoad
    engine: int = 0
    worker: str = ""
    """The name of the worker among those of its engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDone:
    """The dialogue about an image ended, or the image could not be read."""

    status: str
    """accepted, rejected or unreadable"""
    output_tokens: int
    prompt_tokens: int = 0
    requests: int = 0
    """The number of requests that the engine answered."""
    fallback: str = ""
    """The fallback protocol that made the last attempt; empty for the run's own protocol."""
    statements: int = 0
    """The number of pairs with a statement."""
    statements_lost: int = 0
    """The number of pairs for which the model was asked for a statement and gave none."""
    unknown: bool = False
    """Whether the image is none of the kind that the model knows."""
    reason: str = ""
    """Why the image was not accepted."""
    image_id: str = ""
    example: str = ""
    """The beginning of the details, or of the answer, if the image was not accepted."""
    shard: str = ""
    engine: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStaged:
    """A worker completed the files of a shard. Whoever gets this event commits the shard."""

    staged: "StagedShard"
    engine: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied:
    """A worker died; others make its shards from the beginning."""

    shards: tuple[str, ...]
    cause: str
    engine: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSkipped:
    """A shard was already complete."""

    shard: str
    images: int
    rejected: int = 0
    unreadable: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCommitted:
    """A shard became part of the dataset."""

    shard: str
    accepted: int
    rejected: int
    unreadable: int
    redone: bool
    """Whether the shard existed before, but was damaged or made from other input."""
    engine: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWaits:
    """An engine whose servers do not answer waits for them."""

    reason: str
    """Empty when a server answers again."""


Event = (
    EngineStarted
    | LoadMeasured
    | RowDone
    | ShardStaged
    | WorkerDied
    | ShardSkipped
    | ShardCommitted
    | EngineWaits
    | ServerUse
)
Report = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What distinguishes a worker from the others of its run."""

    engine: int = 0
    """The number of its engine, which is part of its events. Several workers may use one engine."""
    alone: bool = True
    """Whether the run has one engine. Otherwise the name of the engine's log contains its number."""
    place: str = ""
    """The name of its own folder for temporary files; "" is the folder of the driver."""
    uploads: bool = False
    """Whether it uploads staged shards to an object store, because the driver cannot read its disk."""
    address: CoreAddress | None = None
    """Where it finds the core of its engine, if several workers use that; None: it starts an engine."""
    frontends: int = 1
    """The number of workers of its engine when it started; each may have this part of the engine's requests."""


ALONE = Worker()
"""The only worker of a run, in the driver's process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorOptions:
    """Settings of an executor; rows do not depend on them."""

    engines: int | None = None
    """The number of engines; None is the executor's default: one for each of the GPUs that it can use."""
    gpus_per_engine: int = 1
    uses_gpus: bool = True
    """Whether engines run the model themselves, so that each needs its own GPUs."""
    frontends: int | None = None
    """The number of workers for each engine; None: as many as keep up with the engine."""
    address: str | None = None
    """The address of a cluster; None is the executor's default."""
    uploads: bool = False
    """Whether the dataset is at a URL, so that workers on other machines must upload what they stage."""
    shared: tuple[Path, ...] = ()
    """Local files that workers on other machines must find under the same path."""


class Job(Protocol):
    """The work to be done on shards."""

    def run(self, shards: "Iterator[InputShard | None]", report: Report, worker: Worker = ALONE) -> None:
        """Makes and stages every shard, and reports events from several threads. Each worker gets other shards.

        `shards` may yield None if there is no shard at the moment: it is asked again. Raises EngineDiedError if the
        engine stops, UsageError if the source cannot be read, DialogGenError if the engine does not start or temporary
        files cannot be written, and what `report` raises.
        """
        ...

    @property
    def is_shared(self) -> bool:
        """Whether several workers can use one engine."""
        ...

    def start_core(self, log: Path, clients: int) -> EngineCore:
        """Starts the core of an engine for so many workers, whose `Worker.address` is one of its addresses.

        Raises DialogGenError if it does not start.
        """
        ...

    def log(self, worker: Worker) -> Path:
        """The file for the output of a worker and its engine, on the worker's machine."""
        ...


class Executor(ABC):
    """Runs a job on the shards of a run. It has no state: the same executor is used for every run."""

    description: ClassVar[str]

    def check(self, options: ExecutorOptions) -> None:
        """Raises UsageError if this executor cannot work with these options. Fast; called before anything starts."""
        if options.engines not in (None, 1):
            raise UsageError(f"--engines {options.engines}: this executor takes no number of engines: leave it out.")
        if options.frontends not in (None, 1):
            raise UsageError(f"--frontends {options.frontends}: this executor cannot do that: leave it out.")

    @abstractmethod
    def run(self, job: Job, shards: "Iterator[InputShard]", report: Report, options: ExecutorOptions) -> None:
        """Returns when every shard was reported as staged; raises what the job and `report` raise.

        `shards` is advanced by one thread at a time; `report` is called in this process, from any thread, and returns
        when a staged shard is committed.
        """

    def map(self, address: str | None = None) -> Map:
        """What applies a function to shards where this executor works: by default, in this process.

        Connects to the cluster at `address`; raises UsageError if there is none.
        """
        return map_here


EXECUTORS = Registry[Executor]("executor", "dialog_gen.executors", base=Executor)


@dataclass(frozen=True, slots=True)
class Where:
    """The executor that a user chose."""

    executor: str = "local"
    ray_address: str | None = None

    def check(self) -> None:
        """Raises UsageError if there is no such executor, or if it does not use the address."""
        EXECUTORS.get(self.executor, where="--executor")
        if self.executor == "local" and self.ray_address is not None:
            raise UsageError(
                f"--ray-address {self.ray_address}: only --executor ray uses a cluster; leave the address out."
            )

    def map(self) -> Map:
        """The `Map` of the executor. Raises what `check` and `Executor.map` raise."""
        self.check()
        return EXECUTORS.get(self.executor).map(self.ray_address)
