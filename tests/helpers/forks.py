"""Processes that are forks of a server that has imported the large libraries, so that a start takes a moment.

The server knows no module of this project: what a fork finds on its path is what counts.
"""

import multiprocessing
import os
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, TimeoutExpired
from tempfile import NamedTemporaryFile
from typing import Any

import psutil

# What is not installed is left out.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "open_clip", "transformers", "accelerate", "vllm.v1.engine.async_llm"])
_LIMIT_S = 600


class ForkedCommand:
    """In place of `subprocess.Popen`: a command of this project, by its name or by `python -m MODULE`, in a fork.

    `stdout` and `stderr` are open files with a name, or numbers as `subprocess` has them. With `process_group` or
    `start_new_session`, it leads a group or a session of its own.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int = DEVNULL,
        stdout: Any = DEVNULL,
        stderr: Any = DEVNULL,
        process_group: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        assert stdin == DEVNULL
        out, err = (os.devnull if stream == DEVNULL else getattr(stream, "name", None) for stream in (stdout, stderr))
        leads = os.setsid if start_new_session else os.setpgrp if process_group == 0 else None
        environment = dict(os.environ if env is None else env)
        self._process = FORKS.Process(
            target=_work, args=(environment, Path.cwd(), [out, err or out], _run_command, (words, leads))
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid
        while leads and self.returncode is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.005)  # from here on, signals reach its group

    @property
    def returncode(self) -> int | None:
        """The exit code, or None as long as it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None as long as it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end and gives the exit code. Raises TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("a fork", timeout or 0)
        return self.returncode

    def children(self, *, recursive: bool = False) -> list[psutil.Process]:
        """The processes that it started."""
        return psutil.Process(self.pid).children(recursive=recursive)


def run_together(
    function: Callable[..., Any], *arguments: Any, environments: Sequence[Mapping[str, str]], cwd: Path | None = None
) -> list[CompletedProcess[str]]:
    """Calls a function in several processes at a time, one for each environment; their results are in its order.

    The code of a process that raised an error is 1. An environment's PYTHONPATH is searched first.
    """
    with ExitStack() as stack:
        files = [[stack.enter_context(NamedTemporaryFile()) for _ in range(2)] for _ in environments]
        processes = [
            FORKS.Process(
                target=_work, args=(dict(environment), cwd or Path.cwd(), [f.name for f in each], function, arguments)
            )
            for environment, each in zip(environments, files, strict=True)
        ]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(_LIMIT_S)
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [
            CompletedProcess(function.__name__, process.exitcode or 0, *(file.read().decode() for file in each))
            for process, each in zip(processes, files, strict=True)
        ]


def run_module(
    module: str, *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> CompletedProcess[str]:
    """What `python -m MODULE ARGUMENTS` prints, and its exit code."""
    given = os.environ if environment is None else environment
    return run_together(_run_module, module, [*map(str, arguments)], environments=[given], cwd=cwd)[0]


def run_file(
    file: Path, *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> CompletedProcess[str]:
    """What `python FILE ARGUMENTS` prints, and its exit code."""
    given = os.environ if environment is None else environment
    return run_together(_run_file, str(file), [*map(str, arguments)], environments=[given], cwd=cwd)[0]


def _run_file(file: str, arguments: list[str]) -> None:
    sys.argv = [file, *arguments]
    runpy.run_path(file, run_name="__main__")


def _run_module(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run_command(words: Sequence[str], leads: Callable[[], Any] | None) -> None:
    if leads:
        leads()
    program, *arguments = words
    if program == "python":
        _run_module(arguments[1], arguments[2:])
        return
    (script,) = entry_points(group="console_scripts", name=program)
    sys.argv = [*words]
    script.load()()


def _work(
    environment: dict[str, str], cwd: Path, files: list[str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    # What it starts in turn starts as in any other process, not from a server like that of these forks.
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    code: Any = 0
    for number, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    # As Python opens them where they are no terminal.
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    try:
        function(*arguments)
    except SystemExit as error:
        code = 0 if error.code is None else error.code
    except BaseException:  # noqa: BLE001 - whatever it is, the test says so
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)  # at once, so that those that it worked with do not wait for it
