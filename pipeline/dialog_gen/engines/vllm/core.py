"""A vLLM engine core that several processes feed, as under `vllm serve --api-server-count`.

The core connects to sockets that its clients bind. So a client may come at any time, and one that ends does not disturb
the core: what it asked runs to its end and is dropped. The core says only once at each address that it is ready, so an
address serves one client, and a client that takes the place of another needs an address of its own.

Clients did not start the core and cannot wait for it. So the process that did holds a named pipe open. The pipe closes
when the core or that process ends, and then every client knows.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm import AsyncEngineArgs
from vllm.config import VllmConfig
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.utils import EngineZmqAddresses, launch_core_engines
from vllm.v1.executor import Executor

from dialog_gen.engines.base import CoreAddress
from dialog_gen.engines.vllm.guard import Guard

_SHUTDOWN_S = 3


class VllmCore:
    """A core on the visible devices, with addresses for a number of clients."""

    def __init__(self, arguments: dict[str, Any], clients: int) -> None:
        """`arguments` are those of `AsyncEngineArgs`."""
        # Clients keep preprocessed images themselves; a core can share such a cache with one client only.
        config = _config(arguments | {"mm_processor_cache_gb": 0})
        # No other user can open what is in it.
        self._folder = Path(tempfile.mkdtemp(prefix="dialog-gen-"))
        self.addresses = [
            CoreAddress(
                client=client,
                clients=clients,
                places={
                    "input": f"ipc://{self._folder}/in-{client}",
                    "output": f"ipc://{self._folder}/out-{client}",
                    "alive": str(self._folder / "alive"),
                },
            )
            for client in range(clients)
        ]
        os.mkfifo(self._folder / "alive")
        # Open for reading, too, so that opening does not wait for a client.
        self._alive = os.open(self._folder / "alive", os.O_RDWR)
        self._ended = threading.Event()
        sockets = EngineZmqAddresses(
            inputs=[address.places["input"] for address in self.addresses],
            outputs=[address.places["output"] for address in self.addresses],
        )
        log_stats = not arguments["disable_log_stats"]
        try:
            with (
                Guard() as self._guard,
                launch_core_engines(config, Executor.get_class(config), log_stats, sockets) as launch,
            ):
                self._processes: Any = launch.engine_manager
        except BaseException:
            self._forget()
            raise
        threading.Thread(target=self._watch, name="core", daemon=True).start()

    def wait(self) -> None:
        """Returns when the core has ended."""
        self._ended.wait()

    def close(self) -> None:
        """Stops the core's processes."""
        self._processes.shutdown(timeout=_SHUTDOWN_S)
        self._ended.wait()
        self._guard.dismiss()

    def _watch(self) -> None:
        self._processes.monitor_engine_liveness()
        self._forget()
        self._ended.set()

    def _forget(self) -> None:
        os.close(self._alive)
        shutil.rmtree(self._folder, ignore_errors=True)


def connect(arguments: dict[str, Any], address: CoreAddress) -> AsyncLLM:
    """A client of the core at an address, whose `arguments` must be those of the core."""
    config = _config(arguments | {"_api_process_count": address.clients, "_api_process_rank": address.client})
    return AsyncLLM.from_vllm_config(
        config,
        disable_log_stats=arguments["disable_log_stats"],
        client_addresses={"input_address": address.places["input"], "output_address": address.places["output"]},
        client_count=address.clients,
        client_index=address.client,
    )


def when_core_ends(address: CoreAddress, call: Callable[[], None]) -> None:
    """Calls `call` in a thread when the core at an address has ended."""

    def watch() -> None:
        with suppress(FileNotFoundError):
            # Without O_NONBLOCK, opening would wait for ever if the core has ended already.
            pipe = os.open(address.places["alive"], os.O_RDONLY | os.O_NONBLOCK)
            os.set_blocking(pipe, True)
            os.read(pipe, 1)
            os.close(pipe)
        call()

    threading.Thread(target=watch, name="core", daemon=True).start()


def _config(arguments: dict[str, Any]) -> VllmConfig:
    return AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
