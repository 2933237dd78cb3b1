"""Finds generators by name, Hugging Face id or local folder.

Another package adds a generator through an entry point of the group `dialog_gen.models`. Its module calls

    MODELS.register("my-model")(ModelEntry(source="user/my-model", protocol="llava-3qa", description="..."))
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry
from dialog_gen.models.architectures import Architecture, architecture_of
from dialog_gen.models.folder import (
    chat_template_of,
    check_weights,
    fetch,
    fingerprint,
    protocol_of,
    read_config,
    unknown_model,
)
from dialog_gen.models.templates import render_chat
from dialog_gen.protocols.protocol import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A generator that is registered under a name."""

    source: str
    """Hugging Face id, or, for a model that ships with a package, its name there."""
    protocol: str
    """The protocol that is used by default."""
    description: str
    dtype: str = "auto"
    max_model_len: int | None = None
    folder: Path | None = None
    """The model folder, if the model ships with a package."""

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
            "shipped": self.shipped,
            "max_model_len": self.max_model_len,
        }


MODELS = Registry[ModelEntry]("model", "dialog_gen.models", base=ModelEntry)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorModel:
    """A model that is checked and ready for an engine."""

    name: str
    revision: str
    """Commit on the Hub, or the fingerprint of a folder that has none."""
    default_protocol: str
    folder: Path | None = None
    """The model folder; None if the model is a name at an endpoint."""
    chat_template: str | None = None
    """None if a server renders the conversations."""
    dtype: str = "auto"
    max_model_len: int | None = None
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """The content of config.json."""
    shipped: bool = False

    @property
    def files(self) -> Path:
        """The model folder. Raises ValueError for a model at an endpoint."""
        if self.folder is None:
            raise ValueError(f"{self.name} has no local folder")
        return self.folder

    @property
    def image_token(self) -> str:
        """The text that stands for an image in this model's prompts."""
        return "<image>"

    @property
    def architecture(self) -> Architecture:
        """The model's entry in the table of architectures."""
        return architecture_of(self.config)

    @property
    def served_by_vllm(self) -> bool:
        """Whether vLLM supports the model's architecture."""
        return self.architecture.served_by_vllm

    def render(self, messages: Conversation) -> str:
        """Renders a conversation as the prompt for the next answer. Raises ValueError without a chat template."""
        if self.chat_template is None:
            raise ValueError(f"{self.name} has no local chat template")
        return render_chat(self.chat_template, messages)


def resolve_model(name: str, *, revision: str | None = None, download: bool = True) -> GeneratorModel:
    """Finds a generator by registered name, Hugging Face id or local folder; fetches its files from the Hub.

    With `download=False`, fetches only the small files (configuration, tokenizer, template). Raises UsageError if the
    name is unknown, the folder is not a model folder, the weights are not safetensors, or the chat template is missing
    or fails, and for a `revision` of a model that is not on the Hub.
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
    if download or local:
        check_weights(folder)
    architecture = architecture_of(config)
    return GeneratorModel(
        name=folder.name if local else name,
        folder=folder,
        revision=revision or fingerprint(folder),
        chat_template=chat_template_of(folder, architecture.chat_template),
        default_protocol=entry.protocol if entry else protocol_of(folder) or architecture.protocol,
        dtype=entry.dtype if entry else "auto",
        max_model_len=entry.max_model_len if entry else architecture.context(config),
        config=config,
        shipped=bool(entry and entry.shipped),
    )


def remote_model(name: str, *, revision: str | None = None) -> GeneratorModel:
    """A generator that is a name at an endpoint. Nothing is fetched or checked: only the server knows its models."""
    entry = _entry(name)
    return GeneratorModel(
        name=name,
        revision=revision or "unknown",
        default_protocol=entry.protocol if entry else Architecture().protocol,
        max_model_len=entry.max_model_len if entry else None,
    )


def _entry(name: str) -> ModelEntry | None:
    return MODELS.get(name) if name in MODELS.names() else None
