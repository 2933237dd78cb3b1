"""Engines answer one prompt about one image. Starting one is slow: once a run, not once a shard."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, get_args

from PIL import Image

from dialog_gen.core.errors import DialogGenError, MissingExtraError, UsageError
from dialog_gen.engines.log import first_error, output_to
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling

EngineName = Literal["vllm", "transformers"]
ENGINES: tuple[str, ...] = get_args(EngineName)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt about one image."""

    prompt: str
    image: Image.Image
    image_sha256: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `saw_image` is False where the prompt that ran held no image tokens."""

    text: str
    finish_reason: str
    output_tokens: int
    saw_image: bool
    # No part of what makes answers equal: low bits of a probability depend on who shared the batch.
    tokens: Sequence[tuple[str, float]] = field(default=(), compare=False)
    """Each token's text on its own, and its log-probability under the model: before temperature and top_p. Empty
    unless `EngineOptions.logprobs`."""


class RefusedRequestError(Exception):
    """The engine will not take this request, and would not take it again; `reason` is a snake_case code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class EngineDiedError(DialogGenError):
    """The engine stopped and will answer nothing more."""

    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What shapes an engine beside its model; None leaves the engine's own default."""

    max_in_flight: int = 256
    """Requests kept in the engine."""
    max_model_len: int | None = None
    dtype: str | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    deterministic: bool = False
    """On a GPU: kernels whose results do not depend on the batch a request happens to share."""
    asks_often: bool = False
    """Whether there are many requests about each image, so that keeping its pixels as the model takes them pays."""
    logprobs: bool = False
    """Whether answers tell their tokens' log-probabilities: no other tokens, at some cost for the smallest models."""


class Engine(Protocol):
    """A started engine."""

    name: str
    version: str
    deterministic: bool
    """Whether a rerun gives the same texts, however requests are batched."""

    async def answer(self, request: Request) -> Answer:
        """The model's answer. Raises RefusedRequestError, or EngineDiedError once the engine is gone."""
        ...

    async def close(self) -> None:
        """Stops the engine and its processes."""
        ...


def default_engine(model: GeneratorModel) -> EngineName:
    """VLLM where it is importable and has the architecture, transformers otherwise."""
    return "vllm" if find_spec("vllm") and model.served_by_vllm else "transformers"


def engine_starter(
    name: EngineName, model: GeneratorModel, sampling: Sampling, options: EngineOptions
) -> Callable[[Path], Engine]:
    """A function that starts the engine and sends what it says to a log file.

    What can be checked before the slow start is checked here: raises UsageError if this engine cannot serve the model,
    MissingExtraError if it is not installed. The function raises DialogGenError where the engine does not start.
    """

    def start(log: Path) -> Engine:
        try:
            with output_to(log):
                if name == "vllm":
                    from dialog_gen.engines.vllm import VllmEngine

                    return VllmEngine(model, sampling, options)
                from dialog_gen.engines.transformers import TransformersEngine

                return TransformersEngine(model, sampling, options)
        except Exception as error:  # what the libraries raise here is of any kind
            cause = first_error(log) or f"{type(error).__name__}: {error}"
            raise DialogGenError(f"{name} did not start on {model.name}: {cause} (log: {log})") from error

    if name == "vllm":
        if not find_spec("vllm"):
            raise MissingExtraError("--engine vllm", "vllm", "on a machine without a GPU, see README: Install")
        if not model.served_by_vllm:
            raise UsageError(f"vLLM does not serve {model.name}'s architecture: use --engine transformers.")
    if model.is_mammut and not find_spec("open_clip"):
        raise MissingExtraError(f"a MaMMUT such as {model.name}", "train")
    return start
