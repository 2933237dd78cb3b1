"""The interface of an engine, which answers conversations about images, and the registry of engines.

An engine is one module, here or in another package, that registers an `EngineEntry`. The entry is fast to import and
says what the engine needs; the engine itself is imported when it is started. Starting is slow, so an engine is started
once per run, not once per shard.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.registry import Registry
from dialog_gen.models.registry import GeneratorModel, remote_model, resolve_model
from dialog_gen.protocols.protocol import Conversation, Sampling
from dialog_gen.sources.pixels import UNLIMITED, PixelLimits

if TYPE_CHECKING:
    from PIL import Image


IMAGES_PER_PROMPT = {"first": 1, "all": 16}
"""`--images-per-sample` -> the maximum number of images in a prompt, for which engines reserve memory and tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A conversation about an image, or about several; its last message is the user's.

    The engine renders and tokenises it. The images belong to the message at `image_place`.
    """

    messages: Conversation
    images: "tuple[Image.Image, ...]"
    """At least one."""
    image_sha256: str
    """Of the stored image, or of all of them (`sha256_images`)."""
    seed: int
    encoded: tuple[bytes, ...] = field(default=(), repr=False)
    """The images as stored, for engines that send them to a server; empty if only the pixels are known."""
    sampling: Sampling | None = None
    """Decoding settings for this request; None for those that the engine was started with. Engines whose entry does
    not set `samples_per_request` ignore it."""
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    """The JSON schema that the answer must fit; None for any text. Only for engines whose entry sets `structured`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The engine's answer to a request."""

    text: str
    finish_reason: str
    output_tokens: int
    saw_image: bool
    """False if the prompt had fewer image tokens than images when it ran."""
    prompt_tokens: int = 0
    """The length of the prompt with its image tokens; 0 if the engine does not say."""
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


class EngineHangsError(EngineDiedError):
    """The engine does not answer, start or stop, and was given up. Threads of this process may hang for ever."""

    ends_process = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Settings of an engine, apart from its model; None means the engine's own default."""

    max_in_flight: int = 256
    """The maximum number of requests in the engine at a time."""
    max_model_len: int | None = None
    """The maximum number of tokens of prompt and answer together."""
    context: int | None = None
    """The same, as the protocol needs it; used if neither `max_model_len` nor the model's entry says it."""
    min_pixels: int | None = None
    """Images with fewer pixels are made larger."""
    max_pixels: int | None = None
    """Images with more pixels are made smaller; None for the model's default."""
    dtype: str | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    deterministic: bool = False
    """On a GPU, use kernels whose results do not depend on the other requests in a batch."""
    images_per_prompt: int = 1
    """The maximum number of images in a prompt."""
    reuse_images: bool = False
    """Whether each image is used in many requests, so that keeping its preprocessed pixels is worthwhile."""
    timeout_s: float = 1800
    """The engine is given up if it answers none of its requests for this time; it may take four times that to start."""
    logprobs: bool = False
    """Whether answers contain the log-probabilities of their tokens. The tokens stay the same; very small models become
    slower."""
    structured: bool = False
    """Whether requests have schemas."""
    # Settings that an engine must know (`EngineEntry.knows`); the names and their values are vLLM's.
    kv_cache_dtype: str | None = None
    """The type in which keys and values are kept, such as "fp8"; it changes the texts."""
    quantization: str | None = None
    """How the weights are quantised while they are loaded, such as "fp8"; it changes the texts."""
    max_num_seqs: int | None = None
    """The maximum number of requests in one step of the engine; None for `max_in_flight`."""
    max_num_batched_tokens: int | None = None
    """The maximum number of tokens, of prompts and answers together, in one step of the engine."""
    # For engines whose model is a name at a server:
    endpoints: tuple[str, ...] = ()
    """The addresses of the servers."""
    api_key_env: str = "OPENAI_API_KEY"
    """The name of the environment variable that holds the key. The key itself is never part of the options."""
    image_max_side: int = 1024
    """Images with a longer side than this number of pixels are made smaller before they are sent."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """The format of images that cannot be sent as they are stored."""
    max_cost: float | None = None
    """The engine stops before its requests cost more than this, in the currency of the prices."""
    price_input: float | None = None
    """The price of a million tokens of prompt."""
    price_output: float | None = None
    """The price of a million tokens of answer."""

    def context_of(self, model: GeneratorModel) -> int | None:
        """The maximum number of tokens of prompt and answer together; None if the engine determines it."""
        return self.max_model_len or model.max_model_len or self.context

    def pixel_limits(self, model: GeneratorModel) -> PixelLimits:
        """The pixels that an image has at least and at most."""
        return PixelLimits(self.min_pixels, self.max_pixels or model.max_pixels)

    def resizing(self, model: GeneratorModel) -> PixelLimits:
        """The limits that images are brought within before the engine gets them: none if its processor does that."""
        return UNLIMITED if model.architecture.takes_max_pixels else self.pixel_limits(model)

    @property
    def endpoint(self) -> str | None:
        """The first of the endpoints; None if there is none."""
        return self.endpoints[0] if self.endpoints else None

    def speed_options(self) -> dict[str, Any]:
        """The settings that change the speed and not the texts, as run.json has them."""
        return {name: getattr(self, name) for name in ("max_in_flight", "max_num_seqs", "max_num_batched_tokens")}


SPECIAL_OPTIONS = frozenset({"kv_cache_dtype", "quantization", "max_num_seqs", "max_num_batched_tokens"})
"""The fields of `EngineOptions` that an engine rejects unless its entry knows them."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreAddress:
    """Where one client reaches an engine core that serves several. Plain data, which can be sent to another process."""

    client: int
    """The client's number. Each number is used once, also if the client ends early."""
    clients: int
    """The number of addresses that the core has."""
    places: Mapping[str, str]
    """What the engine needs to find the core, such as paths of sockets."""


class EngineCore(Protocol):
    """A started engine core: it generates, its clients render and tokenise."""

    @property
    def addresses(self) -> Sequence[CoreAddress]:
        """One for each client."""
        ...

    def wait(self) -> None:
        """Returns when the core has ended, for whatever reason. Its clients then raise EngineDiedError."""
        ...

    def close(self) -> None:
        """Stops the core and its processes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUse:
    """What an engine asked of its servers since it started."""

    requests: int = 0
    """Requests that were answered or refused."""
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: int = 0
    """The number of requests whose tokens were estimated, because the server did not count them."""
    cost: float | None = None
    """None if no prices are given."""

    def __add__(self, other: "ServerUse") -> "ServerUse":
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return ServerUse(
            requests=self.requests + other.requests,
            retries=self.retries + other.retries,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            estimated=self.estimated + other.estimated,
            cost=sum(costs) if costs else None,
        )


@runtime_checkable
class ServedEngine(Protocol):
    """What an engine offers in addition if servers do its work."""

    on_waiting: Callable[[str], None]
    """Called with the reason when no server answers, and with an empty text when one answers again."""

    def use(self) -> ServerUse:
        """What the engine has asked of its servers until now."""
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
    samples_per_request: ClassVar[bool] = False
    """Whether the engine obeys `Request.sampling`. Then gates can ask it about an image that a dialogue has just been
    made about; otherwise such gates start an engine of their own after the dialogues."""
    structured: ClassVar[bool] = False
    """Whether the engine obeys `Request.schema`."""
    start_s: ClassVar[float | None] = None
    """How long a start takes, without reading the weights; None for an engine that starts at once or does not say."""
    extra: ClassVar[str] = ""
    """The extras of this package that install it, such as "vllm or cpu"."""
    knows: ClassVar[frozenset[str]] = frozenset()
    """Those of `SPECIAL_OPTIONS` that the engine supports."""

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
        for name in ("max_cost", "price_input", "price_output"):
            if self.needs == "folder" and (value := getattr(options, name)) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value:g}: the engine {self.name} runs the model itself, which costs "
                    "no tokens; leave it out (--gpu-hour-price is the price of GPUs)."
                )
        if options.structured and not self.structured:
            others = [other for other, entry in ENGINES.own().items() if entry.structured]
            raise UsageError(
                f"--structured: the engine {self.name} cannot make a model keep to a schema; leave it out, or use "
                f"--engine {' or '.join(others)}."
            )
        least, most = options.min_pixels, options.max_pixels
        if self.needs == "name" and (least or most):
            raise UsageError(
                f"--{'max' if most else 'min'}-pixels {most or least}: the engine {self.name} sends images to a "
                "server; use --image-max-side."
            )
        if least and most and least > most:
            raise UsageError(f"--min-pixels {least} is more than --max-pixels {most}.")
        if least and model.max_pixels and not most and least > model.max_pixels:
            raise UsageError(
                f"--min-pixels {least} is more than the {model.max_pixels} pixels that an image of {model.name} has at "
                "most by default: give --max-pixels, too."
            )
        for name in sorted(SPECIAL_OPTIONS - self.knows):
            if (value := getattr(options, name)) is not None:
                others = [other for other, entry in ENGINES.own().items() if name in entry.knows]
                raise UsageError(
                    f"--{name.replace('_', '-')} {value}: the engine {self.name} has no such setting; leave it out, or "
                    f"use --engine {' or '.join(others)}."
                )

    def check_here(self, model: GeneratorModel, options: EngineOptions) -> None:  # noqa: B027 - most have nothing to check
        """Checks what depends on this machine, on which the engine is to run; after `check`.

        Raises UsageError if the engine cannot serve the model on its devices and with its packages.
        """

    @abstractmethod
    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Starts the engine; returns when it is ready to answer. May raise errors of any kind."""


class SharedEngineEntry(EngineEntry):
    """An engine of which one core can be fed by several processes (`--frontends`)."""

    @abstractmethod
    def start_core(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions, clients: int) -> EngineCore:
        """Starts a core with addresses for `clients` clients; returns when it is ready.

        The core ends with the process that started it, and a client that ends, however it does, does not disturb it.
        May raise errors of any kind.
        """

    @abstractmethod
    def connect(
        self, model: GeneratorModel, sampling: Sampling, options: EngineOptions, address: CoreAddress
    ) -> Engine:
        """The engine at an address, as a client in this process; closing it leaves the core. The settings must be those
        of `start_core`. May raise errors of any kind.
        """


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
