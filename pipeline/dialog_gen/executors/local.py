"""The executor `local`: one engine in this process, or several engines, each in a process of its own.

Several workers may feed one engine (`frontends`): then its core has a process of its own, too.
"""

import logging
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.files import writing
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.engines.devices import VARIABLE, shares, visible_gpus
from dialog_gen.executors.base import (
    EXECUTORS,
    Executor,
    ExecutorOptions,
    Job,
    LoadMeasured,
    Report,
    ShardStaged,
    Worker,
)
from dialog_gen.executors.core_process import CoreProcess
from dialog_gen.executors.dispatch import Dispatcher, passed_on
from dialog_gen.executors.load import MEASURED_S, WorkerLoad, cores_per_engine, wants_another_frontend
from dialog_gen.executors.process import WorkerProcess
from dialog_gen.executors.worker import Ask, Ended, Events

if TYPE_CHECKING:
    from dialog_gen.sources.base import InputShard

_CORE_ENDS_S = 2.0
_FAILURES = 3
"""An engine that dies this many times in a row without a finished shard is not started again."""

_log = logging.getLogger(__name__)


class LocalExecutor(Executor):
    """Runs the job in this process, or in several processes of this machine."""

    description = "this machine: one engine in this process, or processes for several engines or frontends"

    def check(self, options: ExecutorOptions) -> None:
        """Raises UsageError if there are too few GPUs."""
        _shares(options)

    def run(self, job: Job, shards: "Iterator[InputShard]", report: Report, options: ExecutorOptions) -> None:
        """Runs the job on all shards; raises what `Job.run` raises.

        With several engines, or several workers for an engine, the shards of one that dies go to the others, and a new
        one is started. Raises EngineDiedError if three die in a row without a finished shard, or with the same shard.
        """
        devices = _shares(options)
        fewest, most = _frontends(job, options, len(devices))
        if len(devices) == most == 1:
            job.run(shards, report)
        else:
            _Pool(job, Dispatcher(shards, report), devices, fewest, most).run()


def _shares(options: ExecutorOptions) -> list[str | None]:
    if not options.uses_gpus:
        return [None] * (options.engines or 1)
    return shares(options.engines, options.gpus_per_engine)


def _frontends(job: Job, options: ExecutorOptions, engines: int) -> tuple[int, int]:
    """The number of workers for each engine, at the beginning and at most.

    More than one is chosen only on GPUs: elsewhere, the engine itself needs the CPU.
    """
    if options.frontends is not None:
        return options.frontends, options.frontends
    return 1, cores_per_engine(engines) if job.is_shared and options.uses_gpus and visible_gpus() else 1


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a worker. `error` is one of the driver, and ends the run."""

    process: WorkerProcess
    ended: Ended | None
    staged: bool
    error: BaseException | None
    core: CoreProcess | None


@dataclass(frozen=True, slots=True)
class _More:
    """An engine is not fed fast enough."""

    engine: int


class _Pool:
    """The workers of a run; one thread listens to each of them."""

    def __init__(
        self, job: Job, dispatcher: Dispatcher, devices: list[str | None], frontends: int, most_frontends: int
    ) -> None:
        self._job, self._dispatcher, self._devices = job, dispatcher, devices
        self._frontends, self._most = frontends, most_frontends
        self._news = SimpleQueue[_End | _More]()
        self._processes = dict[Worker, WorkerProcess]()
        self._listeners = list[threading.Thread]()
        self._failures = [0] * len(devices)
        self._cores = dict[int, CoreProcess]()
        self._dead = set[CoreProcess]()
        self._loads = dict[Worker, WorkerLoad]()
        self._judging = threading.Lock()

    def run(self) -> None:
        try:
            for _ in range(self._frontends):
                for engine in range(len(self._devices)):
                    if not self._dispatcher.prepare():
                        break
                    self._start(engine, again=False)
            while self._processes:
                match self._news.get():
                    case _End() as end:
                        self._after(end)
                    case _More(engine):
                        if self._dispatcher.prepare():
                            _log.info("engine %d has room and its workers are busy: one more starts", engine)
                            self._start(engine, again=True)
        finally:
            left = list(self._processes.values())
            cores = list(self._cores.values())
            for process in (*left, *cores):
                process.stop()
            # None of them may be in the middle of a commit when the dataset is closed.
            for listener in self._listeners:
                listener.join()
            for process in (*left, *cores):
                process.end()

    def _start(self, engine: int, *, again: bool) -> None:
        environment = {} if (devices := self._devices[engine]) is None else {VARIABLE: devices}
        workers = 1 + sum(worker.engine == engine for worker in self._processes)
        worker = Worker(
            engine=engine,
            alone=False,
            place=f"engine-{engine}-{secrets.token_hex(4)}",
            frontends=max(workers, self._frontends),
        )
        log = self._job.log(worker)
        with writing(log):
            if not again and workers == 1:
                log.write_bytes(b"")
            core = self._core(engine, log, environment)
            process = WorkerProcess(self._job, worker, log, environment)
        self._processes[worker] = process
        with self._judging:
            # All are measured again, together.
            self._loads = {other: load for other, load in self._loads.items() if other.engine != engine}
            self._loads |= {other: WorkerLoad() for other in self._processes if other.engine == engine}
        listener = threading.Thread(target=self._listen, args=(process, core), name=f"engine-{engine}", daemon=True)
        self._listeners.append(listener)
        listener.start()

    def _core(self, engine: int, log: Path, environment: Mapping[str, str]) -> CoreProcess | None:
        """The core of an engine that several workers may use, started anew if it has ended."""
        if self._most == 1:
            return None
        if (core := self._cores.get(engine)) is not None and not core.has_ended():
            return core
        if core is not None:
            core.end()
        self._cores[engine] = CoreProcess(self._job, log, environment, self._most)
        return self._cores[engine]

    def _listen(self, process: WorkerProcess, core: CoreProcess | None) -> None:
        staged, ended, error = False, None, None
        try:
            try:
                process.begin(core.address() if core is not None else None)
            except DialogGenError as failed:
                process.stop()
                ended = Ended(failed, died=True)
            while ended is None and (message := process.receive()) is not None:
                match message:
                    case Events():
                        self._dispatcher.events(process.worker, message)
                        staged = staged or any(isinstance(event, ShardStaged) for event in message.events)
                        self._judge(process.worker, message)
                    case Ask():
                        self._dispatcher.ask(process.worker, process.give)
                    case Ended():
                        ended = message
        except BaseException as caught:  # noqa: BLE001 - raised by the thread that waits
            error = caught
        if core is not None and ended is not None and ended.died:
            # A core that died ends its process soon after its workers. Nobody else may get an address of it.
            core.has_ended(_CORE_ENDS_S)
        self._news.put(_End(process, ended, staged, error, core))

    def _judge(self, worker: Worker, message: Events) -> None:
        """Asks for one more worker if those of the engine do not keep up with it."""
        measured = [event.load for event in message.events if isinstance(event, LoadMeasured)]
        if self._frontends == self._most or not measured:
            return
        with self._judging:
            self._loads[worker] = sum(measured, self._loads.get(worker, WorkerLoad()))
            together = [other for other in self._loads if other.engine == worker.engine]
            loads = [self._loads[other] for other in together]
            if any(load.seconds < MEASURED_S for load in loads):
                return
            self._loads |= dict.fromkeys(together, WorkerLoad())
        if wants_another_frontend(loads, self._most):
            self._news.put(_More(worker.engine))

    def _after(self, end: _End) -> None:
        """What follows from the end of a worker. Raises what ends the run."""
        if end.error is not None:
            raise end.error
        worker, log = end.process.worker, end.process.log
        code = end.process.exit_code(killed=end.ended is None)
        del self._processes[worker]
        with self._judging:
            self._loads.pop(worker, None)
        end.process.end()
        if end.ended is None:
            cause: Exception = EngineDiedError(f"the process of engine {worker.engine} ended with exit code {code}")
        elif end.ended.error is None:
            return
        elif not end.ended.died:
            raise end.ended.error
        else:
            cause = end.ended.error
        core = end.core
        # A core takes all of its workers along.
        with_another = core in self._dead
        if core is not None and core.has_ended():
            self._dead.add(core)
        lost = self._dispatcher.lost(worker, cause, log, with_another=with_another)
        if end.staged:
            self._failures[worker.engine] = 0
        elif not with_another:
            self._failures[worker.engine] += 1
        again = self._failures[worker.engine] < _FAILURES
        _log.warning(
            "engine %d died: %s (log: %s). %s%s",
            worker.engine,
            cause,
            log,
            passed_on(lost),
            "; starting it again" if again else "; it is not started again",
        )
        if again and not self._dispatcher.is_done:
            self._start(worker.engine, again=True)
        elif not self._processes and not self._dispatcher.is_done:
            raise EngineDiedError(f"no engine is left; the last one: {cause} (log: {log})") from cause


EXECUTORS.register("local")(LocalExecutor())
