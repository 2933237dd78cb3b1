"""Runs of the pipeline with a scripted engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.base import EngineOptions
from dialog_gen.executors.base import Event
from dialog_gen.generation.committer import Committer
from dialog_gen.generation.dialogue import DialogueGenerator
from dialog_gen.generation.runner import Runner
from dialog_gen.generation.summary import RunResult
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.templates import LLAVA_CHAT_TEMPLATE
from dialog_gen.protocols.protocol import Protocol, Sampling, load_protocol
from dialog_gen.sources.base import InputShard, open_source, with_limit
from helpers.engine import ScriptedEngine, Starts

MODEL = GeneratorModel(
    name="scripted-model",
    folder=Path("nowhere"),
    revision="r1",
    chat_template=LLAVA_CHAT_TEMPLATE,
    default_protocol="llava-3qa",
    dtype="float32",
    max_model_len=None,
    config={},
)
CONFIG: dict[str, Any] = {"model": "scripted-model", "seed": 7}


def make_generator(
    protocol: str | Protocol = "llava-3qa",
    *,
    chat_template: str = LLAVA_CHAT_TEMPLATE,
    temperature: float = 0.7,
    run_seed: int = 7,
    attempts: int = 3,
    special_tokens: tuple[str, ...] = (),
) -> DialogueGenerator:
    return DialogueGenerator(
        protocol=load_protocol(protocol) if isinstance(protocol, str) else protocol,
        chat_template=chat_template,
        sampling=Sampling(temperature=temperature),
        run_seed=run_seed,
        attempts=attempts,
        special_tokens=special_tokens,
    )


def run(
    source: object,
    out: object,
    engine: ScriptedEngine,
    *,
    shard_size: int = 8,
    limit: int | None = None,
    config: dict[str, Any] = CONFIG,
    max_in_flight: int = 8,
    **others: Any,
) -> RunResult:
    """What `generate` does between its checks and its summary."""
    shards = with_limit(open_source(str(source), shard_size=shard_size), limit)
    return run_shards(shards, out, engine, config=config, max_in_flight=max_in_flight, **others)


def run_shards(
    shards: Iterator[InputShard],
    out: object,
    engine: ScriptedEngine,
    *,
    config: dict[str, Any] = CONFIG,
    max_in_flight: int = 4,
    generator: DialogueGenerator | None = None,
    start: Callable[[Path], ScriptedEngine] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunResult:
    result = RunResult()

    def report(event: Event) -> None:
        result.add(event)
        on_event(event)

    with open_writer(str(out), config) as store:
        spec: Any = Starts(start or engine.start, MODEL, EngineOptions(max_in_flight=max_in_flight))
        committer = Committer(store, report)
        job = Runner(staging=store.staging(), generator=generator or make_generator(), engine=spec)
        job.run(committer.incomplete(shards), committer.event)
    return result
