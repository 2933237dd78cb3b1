"""The interface of an engine, which answers conversations about images, and the registry of engines.

An engine is one module, here or in another package, that registers an `EngineEntry`. The entry is fast to import and
says what the engine needs; the engine itself is imported when it is started. Starting is slow, so an engine is started
once per run, not once per shard.
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
    """A conversation about one image; its last message is the user's. The engine renders and tokenises it."""

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
    """False if the prompt had no image tokens when it ran."""
    # Not compared, since the low bits of a probability depend on the other requests in the batch.
    tokens: Sequence[tuple[str, float]] = field(default=(), compare=False)
    """The text and the log-probability of each token, without temperature and top_p. Empty unless
    `EngineOptions.logprobs` is set."""


class RefusedRequestError(Exception):
    """The engine rejects this request, and would reject it again; `reason` is a snake_case code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class EngineDiedError(DialogGenError):
    """The engine has stopped and cannot answer any more requests."""

    exit_code = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Settings of an engine, apart from its model; None means the engine's own default."""

    max_in_flight: int = 256
    """The maximum number of requests in the engine at a time."""
    endpoint: str | None = None
    """The address of a server, for engines whose model is a name at a server."""
    max_model_len: int | None = None
    """The maximum number of tokens of prompt and answer together."""
    dtype: str | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    deterministic: bool = False
    """On a GPU, use kernels whose results do not depend on the other requests in a batch."""
    reuse_images: bool = False
    """Whether each image is used in many requests, so that keeping its preprocessed pixels is worthwhile."""
    logprobs: bool = False
    """Whether answers contain the log-probabilities of their tokens. The tokens stay the same; very small models become
    slower."""


class Engine(Protocol):
    """A started engine."""

    name: str
    version: str
    deterministic: bool
    """Whether a second run gives the same texts, independent of how requests are batched."""

    async def answer(self, request: Request) -> Answer:
        """The model's answer. Raises RefusedRequestError, or EngineDiedError if the engine has stopped."""
        ...

    async def close(self) -> None:
        """Stops the engine and its processes."""
        ...


class EngineEntry(ABC):
    """A registered engine that can be started. It has no state: the same entry is used for every run."""

    name: ClassVar[str]
    description: ClassVar[str]
    needs: ClassVar[Literal["folder", "name"]]
    """What the engine needs to know of a model: a local folder with weights, or only a name at an endpoint."""
    default_rank: ClassVar[int | None] = None
    """If the user names no engine, the engine with the lowest rank that serves the model is used; 0 is the fastest. An
    engine with None is used only if it is named."""
    extra: ClassVar[str] = ""
    """The extras of this package that install it, such as "vllm or cpu"."""

    def installed(self) -> bool:
        """Whether the packages that the engine needs are installed."""
        return True

    def serves(self, model: GeneratorModel) -> bool:
        """Whether the engine supports the model's architecture."""
        return True

    def resolve(self, name: str, *, revision: str | None = None, download: bool = True) -> GeneratorModel:
        """The model of that name, in the form that this engine needs. Raises UsageError like `resolve_model`."""
        if self.needs == "name":
            return remote_model(name, revision=revision)
        return resolve_model(name, revision=revision, download=download)

    def check(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Checks what can be checked before the slow start.

        Raises UsageError if the engine cannot serve the model with these options, and MissingExtraError if it is not
        installed. A subclass that overrides this method must call it.
        """
        if self.needs == "folder" and options.endpoint is not None:
            raise UsageError(
                f"--endpoint {options.endpoint}: the engine {self.name} runs the model itself; leave it out, or choose "
                "an engine that asks a server."
            )

    @abstractmethod
    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Starts the engine; returns when it is ready to answer. May raise errors of any kind."""


ENGINES = Registry[EngineEntry]("engine", "dialog_gen.engines", base=EngineEntry)


def default_engine(model: GeneratorModel) -> EngineEntry:
    """The installed engine with the lowest rank that serves the model. Raises UsageError if there is none."""
    for entry in _ranked(model):
        if entry.installed():
            return entry
    raise UsageError(f"no installed engine serves {model.name}: name one with --engine ({', '.join(ENGINES.names())}).")


def faster_engine(model: GeneratorModel, chosen: str) -> EngineEntry | None:
    """The engine with the lowest rank that serves the model, if it is not installed and not the chosen one."""
    first = _ranked(model)[0]
    return None if first.name == chosen or first.installed() else first


def _ranked(model: GeneratorModel) -> list[EngineEntry]:
    # Engines of other packages are used only if the user names them.
    ranked = [(entry.default_rank, entry) for entry in ENGINES.own().values() if entry.default_rank is not None]
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0]) if entry.serves(model)]
