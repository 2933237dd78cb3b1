"""What an engine is: something that answers a conversation about one image; and the registry of engines.

An engine is one module, here or in another package, that registers an `EngineEntry`. The entry is light and says what
the engine needs; the engine itself is imported when it is started. Starting is slow: once a run, not once a shard.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.registry import Registry
from dialog_gen.models.registry import GeneratorModel, remote_model, resolve_model
from dialog_gen.protocols.protocol import Conversation, Sampling

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A conversation about one image, which ends with the user. Engines render and tokenise it by themselves."""

    messages: Conversation
    image: "Image.Image"
    image_sha256: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The engine's answer to a request."""

    text: str
    finish_reason: str
    output_tokens: int
    saw_image: bool
    """False where the prompt that ran held no image tokens."""
    # Left out of comparisons: low bits of a probability depend on the other requests in the batch.
    tokens: Sequence[tuple[str, float]] = field(default=(), compare=False)
    """Each token's text on its own, and its log-probability under the model: before temperature and top_p. Empty
    unless `EngineOptions.logprobs`."""


class RefusedRequestError(Exception):
    """The engine does not take this request, and would not take it again; `reason` is a snake_case code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class EngineDiedError(DialogGenError):
    """The engine stopped and will answer nothing more."""

    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Settings of an engine beside its model; None leaves the engine's own default."""

    max_in_flight: int = 256
    """Requests kept in the engine."""
    endpoint: str | None = None
    """Address of a server, for engines that need a name at one."""
    max_model_len: int | None = None
    dtype: str | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    deterministic: bool = False
    """On a GPU: kernels whose results do not depend on the batch that a request shares."""
    reuse_images: bool = False
    """Whether each image comes in many requests, so that it pays to keep its preprocessed pixels."""
    logprobs: bool = False
    """Whether answers hold their tokens' log-probabilities: the tokens are the same, the smallest models are slower."""


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


class EngineEntry(ABC):
    """An engine that can be started, as it is registered. Stateless: the same entry serves every run."""

    name: ClassVar[str]
    description: ClassVar[str]
    needs: ClassVar[Literal["folder", "name"]]
    """What it needs of a model: a local folder with weights, or only a name at an endpoint."""
    default_rank: ClassVar[int | None] = None
    """Where no engine is named, the lowest rank that serves the model is used: 0 is the fastest. None: only where
    it is named."""
    extra: ClassVar[str] = ""
    """The extras of this package that install it, such as "vllm or cpu"."""

    def installed(self) -> bool:
        """Whether what it imports is there."""
        return True

    def serves(self, model: GeneratorModel) -> bool:
        """Whether it has the model's architecture."""
        return True

    def resolve(self, name: str, *, revision: str | None = None, download: bool = True) -> GeneratorModel:
        """The model of that name, as this engine needs it. Raises UsageError as `resolve_model` does."""
        if self.needs == "name":
            return remote_model(name, revision=revision)
        return resolve_model(name, revision=revision, download=download)

    def check(self, model: GeneratorModel, options: EngineOptions) -> None:
        """What can be checked before the slow start.

        Raises UsageError where it cannot serve the model with these options, MissingExtraError where it is not
        installed. An engine that overrides this calls it, too.
        """
        if self.needs == "folder" and options.endpoint is not None:
            raise UsageError(
                f"--endpoint {options.endpoint}: the engine {self.name} runs the model itself; leave it out, or choose "
                "an engine that asks a server."
            )

    @abstractmethod
    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Starts the engine; returns once it can answer. What it raises is of any kind."""


ENGINES = Registry[EngineEntry]("engine", "dialog_gen.engines", base=EngineEntry)


def default_engine(model: GeneratorModel) -> EngineEntry:
    """The first engine by rank that serves the model and is installed. Raises UsageError where there is none."""
    for entry in _ranked(model):
        if entry.installed():
            return entry
    raise UsageError(f"no installed engine serves {model.name}: name one with --engine ({', '.join(ENGINES.names())}).")


def faster_engine(model: GeneratorModel, chosen: str) -> EngineEntry | None:
    """An engine of a better rank than the chosen one that would serve the model, but is not installed."""
    first = _ranked(model)[0]
    return None if first.name == chosen or first.installed() else first


def _ranked(model: GeneratorModel) -> list[EngineEntry]:
    # Those of other packages are taken only where they are named.
    ranked = [(entry.default_rank, entry) for entry in ENGINES.own().values() if entry.default_rank is not None]
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0]) if entry.serves(model)]
