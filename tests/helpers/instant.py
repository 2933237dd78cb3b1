"""An engine of another package that answers at once, or after DELAY_S. One core serves several processes."""

_SOURCE = '''
import asyncio
import os
import threading

from dialog_gen.engines.base import ENGINES, Answer, CoreAddress, EngineDiedError, SharedEngineEntry

DELAY_S = float(os.environ.get("DELAY_S", "0"))
TEXT = "\\n".join(f"{i}. Q: What is at {i}? A: It is a thing." for i in (1, 2, 3))


class Instant:
    name, version, deterministic = "instant", "1", True

    def __init__(self, alive=None):
        self._alive = alive

    async def answer(self, request):
        if DELAY_S:
            await asyncio.sleep(DELAY_S)
        if self._alive is not None and not os.path.exists(self._alive):
            raise EngineDiedError("the core has ended")
        return Answer(text=TEXT, finish_reason="stop", output_tokens=30, saw_image=True)

    async def close(self):
        pass


class Core:
    """Lives as long as its file is there."""

    def __init__(self, clients):
        self._alive = os.path.abspath(f"core-{os.getpid()}")
        open(self._alive, "w").close()
        places = {"alive": self._alive}
        self.addresses = [CoreAddress(client=k, clients=clients, places=places) for k in range(clients)]
        self._closed = threading.Event()

    def wait(self):
        while os.path.exists(self._alive) and not self._closed.wait(0.05):
            pass

    def close(self):
        self._closed.set()
        if os.path.exists(self._alive):
            os.unlink(self._alive)


class InstantEntry(SharedEngineEntry):
    name = "instant"
    description = "answers at once"
    needs = "name"

    def start(self, model, sampling, options):
        return Instant()

    def start_core(self, model, sampling, options, clients):
        return Core(clients)

    def connect(self, model, sampling, options, address):
        return Instant(address.places["alive"])


ENGINES.register("instant")(InstantEntry())
'''
INSTANT = {"instant_of_a_test": _SOURCE}
INSTANT_POINTS = {"dialog_gen.engines": {"instant": "instant_of_a_test"}}
