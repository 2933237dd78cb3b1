"""Processes that are forks of a server that has imported the large libraries, so that a start takes a moment.

The server knows no module of this project: what a fork finds on its path is what counts. What a fork starts in turn, a
Python or an engine core of vLLM, is a fork of it, too, with no more open files than a new process would have.
"""

import inspect
import logging
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import entry_points
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, TimeoutExpired
from tempfile import NamedTemporaryFile
from typing import Any, NoReturn
from unittest.mock import patch

import psutil

# What is not installed is left out.
FORKS = multiprocessing.get_context("forkserver")
_LIBRARIES = ["torch", "open_clip", "transformers", "accelerate", "vllm.v1.engine.async_llm"]
FORKS.set_forkserver_preload(_LIBRARIES)
_LIMIT_S = 600
_OWN = ("dialog_gen", "dialog_train", "dialog_eval", "helpers", "faults")
_EXECUTE = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_SIGNATURE = inspect.signature(_EXECUTE)
_SPAWN = multiprocessing.util.spawnv_passfds


def start_server() -> None:
    """Makes the server a fork of this process if that has imported the libraries, as it has to collect all tests.

    Otherwise a new Python imports them when the first fork is needed.
    """
    if all(name in sys.modules for name in _LIBRARIES):
        resource_tracker.ensure_running()
        with patch.object(multiprocessing.util, "spawnv_passfds", _fork_server):
            forkserver.ensure_running()


def _fork_server(executable: bytes, words: Sequence[str], files: Sequence[int]) -> int:
    """In place of a function of `multiprocessing`, which starts a new Python with `-c` and the last word."""
    pid = os.fork()
    if pid == 0:
        try:
            multiprocessing.util.spawnv_passfds = _SPAWN
            _cut_off({*_open_files()} - {*files})
            _forget_parent()
            exec(words[-1], {})
        finally:
            os._exit(0)
    return pid


class _CoreProcess(ForkProcess):
    """A fork that, like a spawned process, has no open file of its parent but the standard ones."""

    _inherited: tuple[int, ...] = ()

    def start(self) -> None:
        self._inherited = _open_files()
        super().start()

    def run(self) -> None:
        from vllm import logger

        _cut_off(self._inherited)
        _open_standard_streams()
        _reset_warnings()
        logger._configure_vllm_root_logger()
        super().run()


class _CoreContext(ForkContext):
    Process = _CoreProcess  # type: ignore[assignment]


def fork_vllm() -> None:
    """From now on, vLLM starts its engine cores and inspects models in forks of this process, or in this process.

    Otherwise each is a new Python that imports vLLM, which takes longer than most tests.
    """
    from vllm.model_executor.models import registry
    from vllm.v1.engine import utils

    utils.get_mp_context = _CoreContext  # type: ignore[assignment]
    registry._run_in_subprocess = lambda function: function()


def _fork_python(self: Any, *given: Any) -> None:
    """In place of a method of `subprocess.Popen`: where it would start this Python, that is a fork of this process."""
    call = _SIGNATURE.bind(self, *given).arguments
    given_words = call["args"]
    words = [] if isinstance(given_words, str | bytes | os.PathLike) else [os.fsdecode(word) for word in given_words]
    while words[1:] and words[1] in ("-P", "-u"):
        del words[1]
    if words[:1] != [sys.executable] or words[1:2] == [] or (words[1].startswith("-") and words[1] not in ("-c", "-m")):
        _EXECUTE(self, *given)
        return
    pipes = [call[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
    sys.stdout.flush()  # else the fork would write it, too
    sys.stderr.flush()
    self.pid = os.fork()
    if self.pid == 0:
        try:
            streams = [os.dup(number) if number >= 0 else None for number in (pipes[0], pipes[3], pipes[5])]
            for number, stream in enumerate(streams):
                if stream is not None:
                    os.dup2(stream, number)
            _cut_off({*_open_files()} - {*call["pass_fds"]})
            if call["start_new_session"]:
                os.setsid()
            elif call["process_group"] >= 0:
                os.setpgid(0, call["process_group"])
            _forget_parent()
            environment = os.environ if call["env"] is None else call["env"]
            named = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
            _call(named, call["cwd"] or Path.cwd(), _run_python, (words[1:],))
        except BaseException:  # noqa: BLE001 - a fork must never return
            traceback.print_exc()
        finally:
            os._exit(1)
    self._child_created = True
    self._close_pipe_fds(*pipes)


def _forget_parent() -> None:
    """What a fork knows of its parent, and a new Python would not: its children, signals, hooks, this project."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
        del sys.modules[name]
    for name in ["", *logging.root.manager.loggerDict]:
        if not name or name.partition(".")[0] in _OWN:
            logging.getLogger(name).handlers.clear()
    sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
    _reset_warnings()


def _reset_warnings() -> None:
    """As Python has them; pytest's are others."""
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)


def _open_files() -> tuple[int, ...]:
    return tuple(int(number) for number in os.listdir("/dev/fd"))  # noqa: PTH208 - numbers


def _cut_off(files: Iterable[int]) -> None:
    """Empties all but the standard files. They stay open: objects of the parent would close the number's next file."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in files:
        if number > 2:
            os.dup2(null, number)


def _open_standard_streams() -> None:
    """As Python opens them where they are no terminal."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115


class ForkedCommand:
    """In place of `subprocess.Popen`: a command of this project, by its name or by `python -m MODULE`, in a fork.

    `stdout` and `stderr` are open files with a name, or numbers as `subprocess` has them. With `process_group` or
    `start_new_session`, it leads a group or a session of its own. With `anew`, what it starts are new processes, not
    forks.
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
        anew: bool = False,
    ) -> None:
        assert stdin == DEVNULL
        out, err = (os.devnull if stream == DEVNULL else getattr(stream, "name", None) for stream in (stdout, stderr))
        leads = os.setsid if start_new_session else os.setpgrp if process_group == 0 else None
        environment = dict(os.environ if env is None else env)
        self._process = FORKS.Process(
            target=_work, args=(environment, Path.cwd(), [out, err or out], _run_command, (words, leads), anew)
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


def run_command(environment: dict[str, str], cwd: Path, files: list[str], words: Sequence[str]) -> None:
    """A command of this project, as the target of a fork; `files` are those of stdout and stderr."""
    _work(environment, cwd, files, _run_command, (words, None))


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


def _run_python(words: list[str]) -> None:
    if words[0] == "-m":
        _run_module(words[1], words[2:])
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        _run_file(words[0], words[1:])


def _work(
    environment: dict[str, str],
    cwd: Path,
    files: list[str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    anew: bool = False,
) -> None:
    for number, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    if not anew:
        subprocess.Popen._execute_child = _fork_python  # type: ignore[attr-defined]
        if "vllm" in sys.modules:
            fork_vllm()
    _call(environment, cwd, function, arguments)


def _call(
    environment: Mapping[str, str], cwd: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> NoReturn:
    """Ends this process with the code of the function."""
    # What it starts in turn starts as in any other process, not from a server like that of these forks.
    multiprocessing.set_start_method(None, force=True)
    with suppress(ImportError):
        from setproctitle import getproctitle

        getproctitle()  # it finds its place in memory by the first environment; vLLM gives its processes titles
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    _open_standard_streams()
    code: Any = 0
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
