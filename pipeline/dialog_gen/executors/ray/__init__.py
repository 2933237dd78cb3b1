"""The executor `ray`: workers on a Ray cluster, or on a Ray that this process starts."""

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialog_gen.core.mapping import Advance, Item, Map, Result, ignore_advance
from dialog_gen.executors.base import EXECUTORS, Executor, ExecutorOptions, Job, Report, Worker
from dialog_gen.executors.dispatch import Dispatcher
from dialog_gen.executors.ray.actor import seen
from dialog_gen.executors.ray.connection import check_installed, connect
from dialog_gen.executors.ray.pool import Pool, Resources

if TYPE_CHECKING:
    from dialog_gen.sources.base import InputShard

_AHEAD = 4  # items per worker that may be complete before an earlier one is


class RayExecutor(Executor):
    """Runs work on the machines of a Ray cluster."""

    description = "workers on a Ray cluster, or on a Ray that is started here"

    def check(self, options: ExecutorOptions) -> None:
        """Raises MissingExtraError if Ray is not installed."""
        check_installed()

    def run(self, job: Job, shards: "Iterator[InputShard]", report: Report, options: ExecutorOptions) -> None:
        """Runs the job on all shards, on actors that each own an engine; raises what `connect` and `Pool` raise.

        By default there is one engine for each GPU of the cluster (or for each `gpus_per_engine`), also for those that
        come later; a single one on a cluster without GPUs. More engines than there is room for wait for it.
        """
        import ray

        connect(options.address)
        gpus = options.gpus_per_engine if options.uses_gpus and ray.cluster_resources().get("GPU", 0) else 0
        run = secrets.token_hex(4)
        pool = Pool(
            job,
            Dispatcher(shards, report, may_die_early=True),
            Resources(gpus=gpus, most=options.engines if options.engines or gpus else 1),
            worker_of=lambda number: Worker(
                engine=number, alone=False, place=f"engine-{run}-{number}", uploads=options.uploads
            ),
            shared=seen(options.shared),
        )
        for _ in pool.steps():
            pass

    def map(self, address: str | None = None) -> Map:
        """Connects to the cluster; raises what `connect` raises."""
        connect(address)
        return _RayMap()


@dataclass(frozen=True, slots=True)
class _Numbered:
    number: int
    item: Any

    @property
    def name(self) -> str:
        return str(self.number)


@dataclass(frozen=True, slots=True)
class _Advanced:
    count: float


@dataclass(frozen=True, slots=True)
class _Done:
    number: int
    result: Any


@dataclass(frozen=True, slots=True)
class _Calls:
    """A job that applies a function to items."""

    function: Callable[[Any, Advance], Any]

    def run(self, items: Iterator[_Numbered | None], report: Callable[[Any], None], worker: Worker) -> None:
        try:
            for item in items:
                if item is not None:
                    result = self.function(item.item, lambda done: report(_Advanced(done)))
                    report(_Done(item.number, result))
        finally:
            if (close := getattr(self.function, "close", None)) is not None:
                close()

    def log(self, worker: Worker) -> Path:
        """There is none."""
        return Path("none")


def _completes(event: Any) -> str | None:
    return str(event.number) if isinstance(event, _Done) else None


class _RayMap:
    """Applies a function to items in the actors of a cluster."""

    elsewhere = True

    def __call__(
        self,
        function: Callable[[Item, Advance], Result],
        items: Iterable[Item],
        advance: Advance = ignore_advance,
        *,
        gpu: bool = False,
        threads: int = 1,
        shared: Sequence[Path] = (),
    ) -> Iterator[tuple[Item, Result]]:
        import ray

        cluster = ray.cluster_resources()
        resources = Resources(gpus=int(gpu and cluster.get("GPU", 0) >= 1))
        waiting, results = deque[tuple[int, Item]](), dict[int, Any]()

        def numbered() -> Iterator[Any]:
            for number, item in zip(count(), items, strict=False):
                waiting.append((number, item))
                yield _Numbered(number, item)

        def report(event: Any) -> None:
            if isinstance(event, _Advanced):
                advance(event.count)
            elif isinstance(event, _Done):
                results[event.number] = event.result

        job: Any = _Calls(function)
        pool = Pool(
            job,
            Dispatcher(numbered(), report, completes=_completes, may_die_early=True),
            resources,
            worker_of=lambda number: Worker(engine=number),
            shared=seen(shared),
            has_room=lambda: len(results) < _AHEAD * resources.actors(cluster),
        )
        for _ in pool.steps():
            while waiting and waiting[0][0] in results:
                number, item = waiting.popleft()
                yield item, results.pop(number)


EXECUTORS.register("ray")(RayExecutor())
