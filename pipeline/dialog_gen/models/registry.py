"""Finds generators by name, Hugging Face id or local folder.

Another package adds a generator through an entry point of the group `dialog_gen.models`. Its module calls

    MODELS.register("my-model")(ModelEntry(source="user/my-model", protocol="llava-3qa", description="..."))
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry
from dialog_gen.models.architectures import ENCODER_DECODERS, Architecture, architecture_of
from dialog_gen.models.folder import (
    chat_template_of,
    check_kind,
    fetch,
    fingerprint,
    max_pixels_of,
    protocol_of,
    read_config,
    unknown_model,
)
from dialog_gen.models.templates import render_chat
from dialog_gen.models.tokens import IMAGE, SpecialTokens, check_vocabulary, named_in, special_tokens
from dialog_gen.models.weights import check_weights
from dialog_gen.protocols.parsing import opens_thought
from dialog_gen.protocols.protocol import MOST_TOKENS, Conversation, Protocol, Sampling, conversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A generator that is registered under a name."""

    source: str
    """Hugging Face id, or, for a model that ships with a package, its name there."""
    protocol: str
    """The protocol that is used by default."""
    description: str
    dtype: str = "auto"
    licence: str = ""
    """The licence of the weights."""
    gpu_memory_gb: int | None = None
    """Memory of the smallest GPU that runs the model: its weights in 16 bits, and room for 16 requests."""
    image_tokens: str = ""
    """The tokens of an image in a prompt, for people."""
    thinks: bool = False
    """Whether an answer begins with thoughts, which are no part of it."""
    max_model_len: int | None = None
    max_pixels: int | None = None
    """The pixels of an image at most, unless the user says otherwise; None for the architecture's default."""
    knows: str = ""
    """The only kind of images that the model knows, such as "drawn shapes"; empty for any."""
    recognises: "Callable[[Image.Image], bool] | None" = None
    """Whether an image may be of that kind; None if that cannot be seen at once."""
    folder: Path | None = None
    """The model folder, if the model ships with a package."""
    sizes: dict[str, Any] | None = None
    """What `models.dimensions` reads of the released config.json, so that a plan downloads nothing."""

    @property
    def shipped(self) -> bool:
        """Whether the model ships with a package."""
        return self.folder is not None

    def to_json(self) -> dict[str, Any]:
        """The entry as `dialog-gen models --json` prints it."""
        return {
            "source": self.source,
            "protocol": self.protocol,
            "description": self.description,
            "dtype": self.dtype,
            "licence": self.licence or None,
            "gpu_memory_gb": self.gpu_memory_gb,
            "image_tokens": self.image_tokens or None,
            "thinks": self.thinks,
            "knows": self.knows or None,
            "shipped": self.shipped,
            "max_model_len": self.max_model_len,
        }


_THOUGHTS = 4096
"""The tokens of thoughts before an answer at most."""
_SWITCH = "enable_thinking"
"""The variable of chat templates that turns thinking off. It is on by default."""

MODELS = Registry[ModelEntry]("model", "dialog_gen.models", base=ModelEntry)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorModel:
    """A model that is checked and ready for an engine."""

    name: str
    revision: str
    """Commit on the Hub, or the fingerprint of a folder that has none; empty if only a server knows it."""
    default_protocol: str
    folder: Path | None = None
    """The model folder; None if the model is a name at an endpoint."""
    chat_template: str | None = None
    """None if a server renders the conversations."""
    tokens: SpecialTokens = field(default_factory=SpecialTokens)
    dtype: str = "auto"
    max_model_len: int | None = None
    max_pixels: int | None = None
    """The pixels of an image at most, unless the user says otherwise; None for as many as its processor takes."""
    thinks: bool = False
    """Whether an answer begins with thoughts, which are no part of it."""
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """The content of config.json."""
    shipped: bool = False

    @property
    def entry(self) -> ModelEntry | None:
        """The model's entry in the registry, if it ships with a package."""
        return MODELS.get(self.name) if self.shipped else None

    @property
    def knows(self) -> str:
        """The only kind of images that the model knows; empty for any."""
        return self.entry.knows if self.entry else ""

    @property
    def files(self) -> Path:
        """The model folder. Raises ValueError for a model at an endpoint."""
        if self.folder is None:
            raise ValueError(f"{self.name} has no local folder")
        return self.folder

    @property
    def architecture(self) -> Architecture:
        """The model's entry in the table of architectures."""
        return architecture_of(self.config)

    @property
    def placeholder(self) -> str:
        """The text of the token that stands for the image, as far as the files say; `<image>` if they do not."""
        named = named_in(self.config)
        ids = (named.get(key) for key in ("image_token_id", "image_token_index"))
        return next(filter(None, (self.tokens.text_of(number) for number in ids if number is not None)), IMAGE)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the prompt is encoded apart from the answer, so that they share no context."""
        return self.config.get("text_config", {}).get("model_type") in ENCODER_DECODERS

    @property
    def served_by_vllm(self) -> bool:
        """Whether vLLM supports the model's architecture."""
        return self.architecture.served_by_vllm

    def sampling_of(self, protocol: Protocol) -> Sampling:
        """The decoding settings of a protocol; if the model thinks, with room for its thoughts before an answer."""
        if not self.thinks:
            return protocol.sampling
        return protocol.sampling.model_copy(
            update={"max_tokens": min(protocol.sampling.max_tokens + _THOUGHTS, MOST_TOKENS)}
        )

    def render(self, messages: Conversation, images: int = 1) -> str:
        """Renders a conversation as the prompt for the next answer, without the special tokens that its texts contain.

        `images` is the number of images that the conversation is about. Raises ValueError without a chat template.
        """
        if self.chat_template is None:
            raise ValueError(f"{self.name} has no local chat template")
        clean = tuple(replace(message, text=self.tokens.removed_from(message.text)) for message in messages)
        return render_chat(self.chat_template, clean, self.tokens.named, images=images)


def resolve_model(name: str, *, revision: str | None = None, download: bool = True) -> GeneratorModel:
    """Finds a generator by registered name, Hugging Face id or local folder; fetches its files from the Hub.

    With `download=False`, fetches only the small files (configuration, tokenizer, template). Raises UsageError if the
    name is unknown, the folder is not a model folder, the model takes no images or needs code from its repository, the
    architecture is unknown, the weights are not safetensors, incomplete or cut, there is no vocabulary, or the chat
    template is missing, fails or costs too much, and for a `revision` of a model
    that is not on the Hub.
    """
    entry = _entry(name)
    local = entry is None and Path(name).is_dir()
    if revision is not None and (local or (entry and entry.shipped)):
        raise UsageError(
            f"model {name!r} is a folder and has no revision {revision!r}: only models on the Hub have revisions."
        )
    if entry is not None and entry.folder is not None:
        folder = entry.folder
    elif local:
        folder = Path(name).resolve()
    elif entry is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise unknown_model(name, MODELS.names())
    else:
        folder, revision = fetch(entry.source if entry else name, revision, weights=download, known=MODELS.names())
    config = read_config(folder)
    check_kind(name, config)
    if download or local:
        check_weights(folder)
    architecture = architecture_of(config)
    if not architecture.brings_tokenizer:
        check_vocabulary(folder)
    tokens = special_tokens(folder, config)
    template = chat_template_of(folder, architecture.chat_template, tokens)
    return GeneratorModel(
        name=folder.name if local else name,
        folder=folder,
        revision=revision or fingerprint(folder),
        chat_template=template,
        tokens=tokens,
        default_protocol=entry.protocol if entry else protocol_of(folder) or architecture.protocol,
        dtype=entry.dtype if entry else "auto",
        max_model_len=entry.max_model_len if entry else architecture.context(config),
        max_pixels=_max_pixels(folder, entry, architecture),
        thinks=entry.thinks if entry else _thinks(template, tokens),
        config=config,
        shipped=bool(entry and entry.shipped),
    )


def _thinks(template: str, tokens: SpecialTokens) -> bool:
    """Whether a prompt ends within the model's thinking, or the template has a switch that turns thinking off."""
    return _SWITCH in template or opens_thought(render_chat(template, conversation("?"), tokens.named))


def _max_pixels(folder: Path, entry: ModelEntry | None, architecture: Architecture) -> int | None:
    default = (entry.max_pixels if entry else None) or architecture.max_pixels
    own = max_pixels_of(folder) if architecture.takes_max_pixels else None
    return min(filter(None, (default, own)), default=None)


def remote_model(name: str, *, revision: str | None = None) -> GeneratorModel:
    """A generator that is a name at an endpoint. Nothing is fetched or checked: only the server knows its models."""
    entry = _entry(name)
    return GeneratorModel(
        name=name,
        revision=revision or "",
        default_protocol=entry.protocol if entry else Architecture().protocol,
        max_model_len=entry.max_model_len if entry else None,
        thinks=bool(entry and entry.thinks),
    )


def _entry(name: str) -> ModelEntry | None:
    return MODELS.get(name) if name in MODELS.names() else None
