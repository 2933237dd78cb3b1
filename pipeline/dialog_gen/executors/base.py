"""The interface of an executor, which runs a job on shards, and the registry of executors.

An executor decides where a job runs: in this process (`local`), in several processes, or on several machines. It gives
each shard to exactly one worker. Jobs, shards and the reported events are plain data that can be pickled.

Other packages add executors through entry points of the group `dialog_gen.executors`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dialog_gen.core.registry import Registry

if TYPE_CHECKING:
    from dialog_gen.sources.base import InputShard


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStarted:
    """A worker's engine is ready to answer."""

    name: str
    version: str
    deterministic: bool
    seconds: float
    """The duration of the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDone:
    """A row was written."""

    status: str
    """accepted, rejected or unreadable"""
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSkipped:
    """A shard was already complete."""

    shard: str
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCommitted:
    """A shard became part of the dataset."""

    shard: str
    accepted: int
    rejected: int
    unreadable: int
    redone: bool
    """Whether the shard existed before, but was damaged or made from other input."""


Event = EngineStarted | RowDone | ShardSkipped | ShardCommitted
Report = Callable[[Event], None]


class Job(Protocol):
    """The work to be done on shards."""

    def run(self, shards: "Iterator[InputShard]", report: Report) -> None:
        """Makes and commits every shard that is not complete yet. Several workers may run the job on different shards.

        Raises EngineDiedError if the engine stops, UsageError if the source cannot be read, and DialogGenError if the
        dataset cannot be written. Shards that are already committed are kept.
        """
        ...


@runtime_checkable
class Executor(Protocol):
    """Runs a job on the shards of a run."""

    description: str

    def run(self, job: Job, shards: "Iterator[InputShard]", report: Report) -> None:
        """Returns when every shard is complete; raises what the job raises. Calls `report` only in this process."""
        ...


EXECUTORS = Registry[Executor]("executor", "dialog_gen.executors", base=Executor)
