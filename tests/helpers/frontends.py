"""Several processes that ask one engine core, each by `ask`."""

import asyncio
import hashlib
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dialog_gen.engines.base import CoreAddress, EngineDiedError, EngineOptions, Request
from dialog_gen.engines.load import MeasuredEngine
from dialog_gen.engines.start import EngineSpec
from dialog_gen.models.registry import resolve_model
from dialog_gen.protocols.protocol import Sampling, conversation, load_protocol
from dialog_gen.shapes.render import render, render_png
from dialog_gen.shapes.scenes import draw_scene
from helpers.forks import FORKS


def spec_of(engine: str = "vllm") -> EngineSpec:
    """An engine with the embedded model."""
    return EngineSpec(
        name=engine,
        model=resolve_model("shapes-llava"),
        sampling=Sampling(temperature=1, top_p=0.95, max_tokens=128),
        options=EngineOptions(),
    )


def processes_of(core: Any) -> list[int]:
    """The ids of a vLLM core's processes."""
    return [process.pid for process in core._processes.processes]


def requests(spec: EngineSpec, images: range) -> list[Request]:
    """The first request about each drawn scene."""
    turn = load_protocol(spec.model.default_protocol).turns[0]
    scenes = [draw_scene("test", 11, index) for index in images]
    return [
        Request(
            messages=conversation(turn.user),
            images=(render(scene),),
            image_sha256=hashlib.sha256(render_png(scene)).hexdigest(),
            seed=index,
        )
        for index, scene in zip(images, scenes, strict=True)
    ]


def texts(spec: EngineSpec, log: Path, images: range) -> list[str]:
    """The answers of an engine that this process starts, or connects to."""
    log.touch()
    engine = spec.start(log)

    async def work() -> list[str]:
        answers = await asyncio.gather(*map(engine.answer, requests(spec, images)))
        assert isinstance(engine, MeasuredEngine)
        load = engine.load()
        # Each request was inside while another one was, too.
        assert load.render_s > 0
        assert load.waiting_s > load.render_s
        await engine.close()
        return [answer.text for answer in answers]

    return asyncio.run(work())


def ask(spec: EngineSpec, log: Path, images: range, pipe: Connection) -> None:
    """Sends the answers, or the message of EngineDiedError; says when it asks for the first time."""
    log.touch()
    engine = spec.start(log)

    async def work() -> Any:
        waiting = [asyncio.ensure_future(engine.answer(request)) for request in requests(spec, images)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        pipe.send("asked")
        try:
            answers = await asyncio.gather(*waiting)
        except EngineDiedError as error:
            return str(error) or "died"
        await engine.close()
        return [answer.text for answer in answers]

    pipe.send(asyncio.run(work()))


def own_a_core(log: Path, pipe: Connection) -> None:
    """Starts a core, sends the ids of its processes, and lives on."""
    log.touch()
    core = spec_of().start_core(log, clients=1)
    pipe.send(processes_of(core))
    time.sleep(600)


class Client:
    """A process that asks at an address."""

    def __init__(self, spec: EngineSpec, address: CoreAddress, log: Path, images: range) -> None:
        self.pipe, theirs = FORKS.Pipe()
        client = replace(spec, address=address)
        self.process = FORKS.Process(target=ask, args=(client, log, images, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self, patience_s: float = 300) -> Any:
        """What it sends next."""
        assert self.pipe.poll(patience_s)
        return self.pipe.recv()
