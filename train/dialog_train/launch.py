"""Starts several processes of one training on this machine, and handles errors under other launchers.

`accelerate launch` can start them too, on any number of machines. But if a process fails, it exits with 1, whatever the
exit code of the process was, and prints a traceback of its own, which buries the error. `dialog-train --processes N`
keeps the message and the exit code.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of

_ACCELERATE = {"accelerate", "accelerate-launch", "accelerate.commands.accelerate_cli", "accelerate.commands.launch"}


def run_processes(count: int, arguments: Sequence[str]) -> int:
    """Runs `python -m dialog_train ARGUMENTS...` in a group of `count` processes.

    Returns 0, or the exit code of the first process that failed. Raises UsageError inside a group of processes, and if
    the machine has GPUs but fewer than `count`.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if "WORLD_SIZE" in os.environ:
        raise UsageError("--processes: a launcher started several processes already; use one of the two.")
    on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "true" or not torch.cuda.is_available()
    if not on_cpu and count > torch.cuda.device_count():
        raise UsageError(f"--processes {count}: this machine has {count_of(torch.cuda.device_count(), 'GPU')}.")
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # The first process reports the error itself.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dialog_train", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as ending:
        return 128 + int(ending.sigval)
    return 0


def end_launcher() -> None:
    """Ends the `accelerate launch` that started this single process, before it prints a traceback.

    Call it after an error was printed. Accelerate has no other way except its flag -q; with -q this function does
    nothing. The launcher's exit code is then 143 (SIGTERM) instead of 1. Launchers of several processes are left alone:
    torch's agent, which runs in them, answers a signal with another traceback.
    """
    if os.name != "posix" or "WORLD_SIZE" in os.environ:
        return
    try:
        import psutil
    except ImportError:  # it comes with accelerate
        return
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return
    is_accelerate = any(Path(word).name in _ACCELERATE for word in words[1:3])
    if is_accelerate and not {"-q", "--quiet"} & set(words):
        sys.stdout.flush()
        sys.stderr.flush()
        os.kill(os.getppid(), signal.SIGTERM)
