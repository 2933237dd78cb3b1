"""Runs of the pipeline with a scripted engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dialog_gen.dataset.writer import open_writer
from dialog_gen.generation.dialogue import Interview
from dialog_gen.generation.runner import Runner, RunResult
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.templates import LLAVA_CHAT_TEMPLATE
from dialog_gen.protocols.protocol import Protocol, Sampling, load_protocol
from dialog_gen.sources.base import open_source, with_limit
from helpers.engine import ScriptedEngine

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


def make_interview(
    protocol: str | Protocol = "llava-3qa",
    *,
    chat_template: str = LLAVA_CHAT_TEMPLATE,
    temperature: float = 0.7,
    run_seed: int = 7,
    attempts: int = 3,
) -> Interview:
    return Interview(
        protocol=load_protocol(protocol) if isinstance(protocol, str) else protocol,
        chat_template=chat_template,
        sampling=Sampling(temperature=temperature),
        run_seed=run_seed,
        attempts=attempts,
    )


def run(
    source: object,
    out: object,
    engine: ScriptedEngine,
    *,
    shard_size: int = 8,
    limit: int | None = None,
    config: dict[str, Any] = CONFIG,
    start: Callable[[Path], ScriptedEngine] | None = None,
    **runner: Any,
) -> RunResult:
    """What `dialog-gen run` does between its checks and its report."""
    with open_writer(str(out), config) as store:
        settings: dict[str, Any] = {"interview": make_interview(), "model": MODEL, "max_in_flight": 8, **runner}
        shards = with_limit(open_source(str(source), shard_size=shard_size), limit)
        return Runner(store=store, **settings).run(shards, start or engine.start)
