"""Ends an engine's processes with this one, however this one ends.

vLLM's engine process does not notice that its parent was killed: it would live on and keep the GPU's memory. A shell
outside of the process group holds the other end of a pipe; when that closes, it kills what it was told of.
"""

import multiprocessing
import subprocess
import threading
from contextlib import suppress
from typing import Any

_SCRIPT = 'pids=; while read -r pid; do pids="$pids $pid"; done; [ -z "$pids" ] || kill -9 $pids'
_POLL_S = 0.05


class Guard:
    """Watches over the children that `multiprocessing` starts while it is entered, until it is dismissed."""

    def __init__(self) -> None:
        self._others = {child.pid for child in multiprocessing.active_children()}
        self._shell = subprocess.Popen(  # noqa: S603 (its words are ours)
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self._entered = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> "Guard":
        self._teller.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._entered.set()
        self._teller.join()
        if kind is not None:
            for child in self._children():
                child.kill()
            self.dismiss()

    def dismiss(self) -> None:
        """Forgets the children: they have been ended."""
        self._shell.kill()
        self._shell.communicate()

    def _children(self) -> list[Any]:
        return [child for child in multiprocessing.active_children() if child.pid not in self._others]

    def _tell(self) -> None:
        told = set[int]()
        last = False
        while not last:
            # Once more after the last moment of the start.
            last = self._entered.wait(_POLL_S)
            for child in self._children():
                if child.pid not in told:
                    told.add(child.pid)
                    with suppress(BrokenPipeError):
                        self._shell.stdin.write(f"{child.pid}\n".encode())  # type: ignore[union-attr]
