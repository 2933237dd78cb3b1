"""Kills the processes of an engine when this process ends, however it ends.

vLLM's engine process does not notice if its parent is killed: it would continue to run and keep the GPU's memory. So a
shell outside the process group reads process ids from a pipe. When this process ends, the pipe closes, and the shell
kills these processes.
"""

import multiprocessing
import subprocess
import threading
from contextlib import suppress
from typing import Any

_SCRIPT = 'pids=; while read -r pid; do pids="$pids $pid"; done; [ -z "$pids" ] || kill -9 $pids'
_POLL_S = 0.05


class Guard:
    """Guards the child processes that `multiprocessing` starts inside the block, until `dismiss`."""

    def __init__(self) -> None:
        self._others = {child.pid for child in multiprocessing.active_children()}
        self._shell = subprocess.Popen(  # noqa: S603 (a constant command)
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self._block_ended = threading.Event()
        self._reporter = threading.Thread(target=self._report, daemon=True)

    def __enter__(self) -> "Guard":
        self._reporter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._block_ended.set()
        self._reporter.join()
        if kind is not None:
            for child in self._children():
                child.kill()
            self.dismiss()

    def dismiss(self) -> None:
        """Ends the guard without killing anything. Call it after the children have ended."""
        self._shell.kill()
        self._shell.communicate()

    def _children(self) -> list[Any]:
        return [child for child in multiprocessing.active_children() if child.pid not in self._others]

    def _report(self) -> None:
        reported = set[int]()
        last = False
        while not last:
            # After the block has ended, looks for children one last time.
            last = self._block_ended.wait(_POLL_S)
            for child in self._children():
                if child.pid not in reported:
                    reported.add(child.pid)
                    with suppress(BrokenPipeError):
                        self._shell.stdin.write(f"{child.pid}\n".encode())  # type: ignore[union-attr]
