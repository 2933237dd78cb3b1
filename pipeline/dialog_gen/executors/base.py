"""What an executor is: shards and a job in, committed shards out; and the registry of executors.

An executor decides where a job runs: in this process (`local`), in several, on several machines. It hands each shard to
exactly one worker. A job is plain data that pickles, and so are shards and the events that come back.

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
    """A worker's engine can answer."""

    name: str
    version: str
    deterministic: bool
    seconds: float
    """What the start took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDone:
    """A row is written."""

    status: str
    """accepted, rejected or unreadable"""
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSkipped:
    """A shard was complete already."""

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
    """Whether it was there before, but made from other input, or damaged."""


Event = EngineStarted | RowDone | ShardSkipped | ShardCommitted
Report = Callable[[Event], None]


class Job(Protocol):
    """What is done with shards."""

    def run(self, shards: "Iterator[InputShard]", report: Report) -> None:
        """Commits every shard that is not complete yet. Several workers may do so with different shards.

        Raises EngineDiedError, UsageError where the source fails, DialogGenError where the disk does; shards that are
        committed by then stay.
        """
        ...


@runtime_checkable
class Executor(Protocol):
    """Runs a job on the shards of a run."""

    description: str

    def run(self, job: Job, shards: "Iterator[InputShard]", report: Report) -> None:
        """Returns when every shard is complete; raises what the job raises. `report` is called in this process only."""
        ...


EXECUTORS = Registry[Executor]("executor", "dialog_gen.executors", base=Executor)
