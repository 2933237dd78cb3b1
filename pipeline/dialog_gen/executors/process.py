"""A worker in a process of its own, connected to the driver by a pipe: both ends of the pipe.

The process starts as a fresh interpreter, which imports nothing of the driver's main script. It ends at once, with its
engine, when the pipe is closed: so it never outlives the driver, however that ends.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from dialog_gen.engines.base import CoreAddress
from dialog_gen.engines.processes import has_tracker, kill_children
from dialog_gen.executors.base import Job, Worker
from dialog_gen.executors.worker import FromWorker, NoMore, serve

if TYPE_CHECKING:
    from dialog_gen.sources.base import InputShard

_SCRIPT = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
sys.path[:] = pipe.recv()
from importlib import import_module
getattr(import_module("dialog_gen.executors." + sys.argv[2]), sys.argv[3])(pipe)
"""
_END_S = 60
_KILL_S = 5


class PipedProcess:
    """The driver's end of a process that calls a function of a module of this folder with its end of a pipe."""

    def __init__(self, module: str, function: str, log: Path, environment: Mapping[str, str]) -> None:
        """The output of the process is appended to `log`; `environment` is added to this process's."""
        self._pipe, theirs = Pipe()
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 (all arguments are our own)
                [sys.executable, "-P", "-c", _SCRIPT, str(theirs.fileno()), module, function],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                # A terminal's Ctrl-C goes to the driver alone, and what a dead worker leaves can be killed.
                process_group=0,
            )
        self.send(sys.path)

    def send(self, message: object) -> None:
        """Sends a message. A process that has ended gets nothing; whoever receives from it will see that."""
        with suppress(OSError):
            self._pipe.send(message)

    def stop(self) -> None:
        """Tells the process to end at once, with its engine; nothing can be received from now on."""
        with suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)

    def end(self, patience_s: float = _KILL_S) -> None:
        """Waits a few seconds for a process that was stopped, and kills it then."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._pipe.close()

    def _kill(self) -> None:
        # As long as the process was not waited for, nobody else has its id.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class WorkerProcess(PipedProcess):
    """The driver's end of a worker: starts the process, and talks to it."""

    def __init__(self, job: Job, worker: Worker, log: Path, environment: Mapping[str, str]) -> None:
        """The process waits for `begin`."""
        super().__init__("process", "work", log, environment)
        self.worker, self.log = worker, log
        self._job = job
        self._sending = threading.Lock()

    def begin(self, address: CoreAddress | None = None) -> None:
        """Lets the worker begin; `address` is that of its core, if its engine has one."""
        self.send((self._job, replace(self.worker, address=address)))

    def give(self, message: "InputShard | NoMore") -> None:
        """Sends a message to the worker; several threads may call it. A worker that has ended gets nothing."""
        with self._sending:
            self.send(message)

    def receive(self) -> FromWorker | None:
        """The next message of the worker; None if the process has ended."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return None

    def exit_code(self, *, killed: bool) -> int:
        """Waits for the end of the process; negative is the number of the signal that ended it.

        `killed` says that it did not end by itself: it may have left processes, which are killed.
        """
        if not killed:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(_END_S)
        self._kill()
        return self._process.wait()


def work(pipe: Connection) -> None:
    """The worker's process. Does not return."""
    job, worker = pipe.recv()
    inbox = SimpleQueue[Any]()
    threading.Thread(target=_receive, args=(pipe, inbox), name="receiver", daemon=True).start()
    serve(job, _PipeLink(pipe, inbox), worker)
    end_self(0)


class _PipeLink:
    def __init__(self, pipe: Connection, inbox: "SimpleQueue[Any]") -> None:
        self._pipe, self._inbox = pipe, inbox

    def send(self, message: FromWorker) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            end_self(1)

    def receive(self, timeout_s: float) -> "InputShard | NoMore | None":
        try:
            return self._inbox.get(timeout=timeout_s)
        except Empty:
            return None


def _receive(pipe: Connection, inbox: "SimpleQueue[Any]") -> None:
    while True:
        try:
            inbox.put(pipe.recv())
        except (EOFError, OSError):
            end_self(1)


def end_self(code: int) -> None:
    """Ends this process and what it started, although threads of it may hang, or are starting an engine."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    kill_children(keep=())
    if has_tracker():
        kill_children(keep=())
    elif os.getpgrp() == os.getpid():
        # All at once, also what a thread has started meanwhile.
        os.killpg(0, signal.SIGKILL)
    os._exit(code)
