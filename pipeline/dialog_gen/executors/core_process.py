"""An engine core in a process of its own, which gives its addresses to the workers of one engine.

The process ends when the core does, and ends the core when the driver closes its pipe or dies.
"""

import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from dialog_gen.core.errors import DialogGenError
from dialog_gen.engines.base import CoreAddress, EngineCore, EngineDiedError
from dialog_gen.executors.base import Job
from dialog_gen.executors.process import PipedProcess, end_self

_SPARE = 16
"""Addresses for workers that take the places of others: each is used once."""


class CoreProcess(PipedProcess):
    """The driver's end of one engine's core."""

    def __init__(self, job: Job, log: Path, environment: Mapping[str, str], workers: int) -> None:
        """`workers` is the maximum number of workers at a time; the others are as of `WorkerProcess`."""
        super().__init__("core_process", "host", log, environment)
        self.send((job, log, workers + _SPARE))
        self._lock = threading.Lock()
        self._addresses: list[CoreAddress] | DialogGenError | None = None

    def address(self) -> CoreAddress:
        """An address for one worker; waits until the core is ready.

        Raises DialogGenError if it does not start, and EngineDiedError if it has ended or has no address left.
        """
        with self._lock:
            if self._addresses is None:
                try:
                    self._addresses = self._pipe.recv()
                except (EOFError, OSError):
                    self._addresses = EngineDiedError("the process of the engine's core ended while it started")
            if isinstance(self._addresses, DialogGenError):
                raise self._addresses
            if not self._addresses or self._process.poll() is not None:
                raise EngineDiedError("the engine's core has ended, or had too many workers")
            return self._addresses.pop(0)

    def has_ended(self, patience_s: float = 0.0) -> bool:
        """Whether the core has ended, or ends within that time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        return self._process.poll() is not None


def host(pipe: Connection) -> None:
    """The core's process. Does not return."""
    job, log, clients = pipe.recv()
    cores = list[EngineCore]()
    threading.Thread(target=_until_closed, args=(pipe, cores), name="driver", daemon=True).start()
    try:
        cores.append(job.start_core(log, clients))
    except DialogGenError as error:
        pipe.send(error)
        end_self(1)
    pipe.send(list(cores[0].addresses))
    cores[0].wait()
    end_self(1)


def _until_closed(pipe: Connection, cores: list[EngineCore]) -> None:
    with suppress(EOFError, OSError):
        pipe.recv()
    for core in cores:
        core.close()
    end_self(0)
