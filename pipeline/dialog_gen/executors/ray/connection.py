"""The connection of this process to a Ray cluster, or to one that it starts on this machine."""

import atexit
import importlib
import importlib.util
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import MissingExtraError, UsageError
from dialog_gen.core.output import output_to
from dialog_gen.engines.processes import children, kill_children

ADDRESS_VARIABLE = "RAY_ADDRESS"
CONNECT_S = 60
"""An address that does not answer for this time is given up."""
_START_S = 300
_STARTS = 3  # Ray gives a start up after 30 s, which a busy machine may need
_PORT_S = 10
_STORE_BYTES = 256 << 20  # what workers send to the driver is small
_SOCKET_PATH_ROOM = 30  # a socket's path has at most 107 characters, and Ray's own part of it is long


class NoAnswerError(UsageError):
    """A Ray cluster did not answer; a thread of this process may hang in the attempt."""

    ends_process = True


def check_installed() -> None:
    """Raises MissingExtraError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("--executor ray", "ray")


def connect(address: str | None) -> None:
    """Connects to the cluster at `address`, by default at RAY_ADDRESS, or else starts one; keeps a connection.

    The connection ends with the process. Raises MissingExtraError if Ray is not installed, and UsageError if there is
    no cluster at the address: at most a minute after the call.
    """
    check_installed()
    address = address or os.environ.get(ADDRESS_VARIABLE) or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    folder = _folder() if address == "local" and "ray" not in sys.modules else {}
    import ray

    if ray.is_initialized():
        _check_same(address)
        return
    if address == "local":
        _init({"include_dashboard": False, "object_store_memory": _STORE_BYTES, **folder}, address)
    else:
        _check_port(address)
        path = os.environ.get("PYTHONPATH")
        _init({"runtime_env": {"env_vars": {"PYTHONPATH": path}} if path else None}, address)


def _check_same(address: str) -> None:
    """Raises UsageError if the address is not that of the cluster to which this process is connected."""
    import ray

    connected = ray.get_runtime_context().gcs_address
    if address not in ("local", "auto", connected):
        _check_port(address)
        raise UsageError(f"--ray-address {address}: this process is already connected to {connected}.")


def _folder() -> dict[str, str]:
    """A folder for Ray's own files, which is removed when the process ends."""
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="ray-", dir=usual if len(usual) <= _SOCKET_PATH_ROOM else "/tmp")  # noqa: S108
    # What is registered first is called last: Ray has ended by then.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"_temp_dir": folder}


def _check_port(address: str) -> None:
    """Raises UsageError if nothing listens there; connecting to Ray itself would try again for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto", or a name that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PORT_S).close()
    except (OSError, ValueError) as error:
        raise UsageError(_problem(address, getattr(error, "strerror", None) or str(error))) from None


def _init(settings: dict[str, Any], address: str) -> None:
    import ray

    # Else it prints the deaths of machines to stdout, whatever `log_to_driver` says.
    worker: Any = importlib.import_module("ray._private.worker")
    worker._worker_logs_enabled = False  # noqa: SLF001
    outcome, ended = list[BaseException | None](), threading.Event()

    def start() -> None:
        for _ in range(_STARTS if address == "local" else 1):
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **settings)
                outcome[:] = [None]
                break
            except BaseException as error:  # noqa: BLE001 - raised below
                outcome[:] = [error]
                ray.shutdown()
        ended.set()
        # The processes that Ray has started end with the thread that started them.
        threading.Event().wait()

    # In a thread, because it may wait for very long, and so that it leaves the process's signal handlers as they are.
    others = children()
    try:
        with output_to(Path(os.devnull)):
            threading.Thread(target=start, daemon=True).start()
            is_done = ended.wait(_START_S if address == "local" else CONNECT_S)
    except BaseException:
        # Interrupted: of a Ray that has half started, some processes would live on for about a minute.
        kill_children(keep=others)
        raise
    if not is_done:
        raise NoAnswerError(_problem(address, "no answer"))
    if (error := outcome[0]) is not None:
        raise UsageError(_problem(address, str(error).strip().splitlines()[0])) from error


def _problem(address: str, cause: str) -> str:
    if address == "local":
        return f"Ray cannot be started on this machine: {cause}."
    return (
        f"--ray-address {address}: there is no Ray cluster ({cause.rstrip('.')}): give the address of its head, such "
        "as 10.0.0.1:6379, or leave it out to start Ray on this machine."
    )
