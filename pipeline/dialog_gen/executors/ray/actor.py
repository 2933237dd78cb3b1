"""The process of a worker on a Ray cluster: the job runs in a thread, and the driver calls the methods."""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.executors.base import Job, Worker
from dialog_gen.executors.worker import Ended, Events, FromWorker, serve

_WAIT_S = 10
_GATHER_S = 0.05  # events come in large numbers


class Actor:
    """A worker; Ray ends its process when the driver's ends."""

    def __init__(self, job: Job, worker: Worker, folder: str, shared: Mapping[Path, int]) -> None:
        """`folder` is the driver's working directory; `shared`: file -> time of its last change, see `seen`."""
        self._given, self._said = SimpleQueue[Any](), SimpleQueue[FromWorker]()
        threading.Thread(target=self._work, args=(job, worker, folder, shared), daemon=True).start()

    def give(self, message: Any) -> None:
        """Passes on a message from the driver."""
        self._given.put(message)

    def messages(self) -> list[FromWorker]:
        """The messages for the driver, as soon as there are some; none after some seconds."""
        found = list[FromWorker]()
        try:
            found.append(self._said.get(timeout=_WAIT_S))
            if isinstance(found[0], Events):
                time.sleep(_GATHER_S)
            while True:
                found.append(self._said.get_nowait())
        except Empty:
            return found

    def send(self, message: FromWorker) -> None:
        """Keeps a message until the driver takes it."""
        self._said.put(message)

    def receive(self, timeout_s: float) -> Any:
        """The next message from the driver; None if there is none within that time."""
        try:
            return self._given.get(timeout=timeout_s)
        except Empty:
            return None

    def _work(self, job: Job, worker: Worker, folder: str, shared: Mapping[Path, int]) -> None:
        try:
            if Path(folder).is_dir():
                os.chdir(folder)
            _check_shared(shared)
        except UsageError as error:
            self.send(Ended(error))
        else:
            serve(job, self, worker)


def seen(files: Sequence[Path]) -> dict[Path, int]:
    """Each file with the time of its last change in ns, by which another machine recognises it."""
    return {file.resolve(): file.stat().st_mtime_ns for file in files}


def _check_shared(shared: Mapping[Path, int]) -> None:
    for file, changed_ns in shared.items():
        try:
            found = file.stat().st_mtime_ns
        except OSError:
            found = None
        if found != changed_ns:
            raise UsageError(
                f"the machine {os.uname().nodename} of the Ray cluster does not see {file}: a local path must be on a "
                "filesystem that all machines of the cluster share; or give an fsspec URL."
            )
