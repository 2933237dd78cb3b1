"""Commands and functions in forks of this process: each begins as warm as it is, and may be killed."""

import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIMIT_S = 120
CRASHED = 99
"""The exit code that stands for a traceback."""


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    command: str
    code: int
    """Negative: the signal that ended it."""
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def tidy(self) -> bool:
        """Whether it was killed, did its work, or said in one line why it did not."""
        if self.killed or self.code == 0:
            return "Traceback" not in self.err
        said = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.code in (1, 2) and len(said) == 1 and self.err.endswith(said[0] + "\n")

    def expect(self, code: int) -> "Ended":
        """Raises RuntimeError unless the command ended with this code."""
        if self.code != code:
            raise RuntimeError(f"{self.command} ended with {self.code}:\n{self.out}\n{self.err}")
        return self


class Forks:
    """Forks of this process; what they print goes to files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, command: tuple[str, ...], work: Path) -> Ended:
        """Runs a command line in the folder `work`."""
        out, err = self._folder / "stdout", self._folder / "stderr"
        code = self._fork(lambda: _main(command, work), out, err)
        texts = (file.read_text(encoding="utf-8", errors="replace") for file in (out, err))
        return Ended(shlex.join(command), code, *texts)

    def seen(self, command: tuple[str, ...] | None, work: Path, function: Callable[[], Any]) -> tuple[int, Any]:
        """The exit code of a command, 0 without one, and then the value of a function, in one fork."""

        def both() -> tuple[int, Any]:
            code = 0
            try:
                code = _main(command, work) if command else 0
            except BaseException:  # noqa: BLE001 - a traceback, as of any command
                traceback.print_exc()
                code = CRASHED
            return code, function()

        code, value = self.call(both)
        return code, value

    def call(self, function: Callable[[], Any]) -> Any:
        """The value of a function, which JSON can express."""
        result = self._folder / "result"

        def write() -> int:
            result.write_text(json.dumps(function()))
            return 0

        out, err = self._folder / "stdout", self._folder / "stderr"
        if code := self._fork(write, out, err):
            raise RuntimeError(f"a function ended with {code}: {err.read_text()}")
        return json.loads(result.read_bytes())

    def _fork(self, function: Callable[[], int], out: Path, err: Path) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status)
        code = CRASHED
        try:
            signal.alarm(_LIMIT_S)
            for number, file in ((1, out), (2, err)):
                opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(opened, number)
            code = function()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001 - a fork must never return
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _main(command: tuple[str, ...], work: Path) -> int:
    from dialog_gen.cli import app as dialog_gen
    from dialog_train import cli as dialog_train

    os.chdir(work)
    sys.argv = list(command)
    try:
        {"dialog-gen": dialog_gen.main, "dialog-train": dialog_train.main}[command[0]]()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0
