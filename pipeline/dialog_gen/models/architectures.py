"""The table of architectures: what a run must know about a model apart from its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from dialog_gen.clip.mammut.layout import MODEL_TYPE as MAMMUT
from dialog_gen.core.errors import MissingExtraError
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A kind of model, identified by `model_type` in its config.json."""

    protocol: str = "llava-3qa"
    """The protocol that is used by default."""
    chat_template: str | None = None
    """The template for model folders without one."""
    served_by_vllm: bool = True
    """Whether vLLM supports the architecture."""
    ends_at_context: bool = False
    """Whether the model has no positions beyond `max_position_embeddings`, so that no engine may exceed it."""
    register_with_transformers: Callable[[], None] = lambda: None
    """Registers the architecture with transformers if it is not one of its own; can be called more than once."""
    requires: tuple[str, str] | None = None
    """A module that the architecture needs, and the extra of this package that installs it."""
    name: str = "a model"
    """The word for such a model in messages."""

    def check_installed(self, model: str) -> None:
        """Raises MissingExtraError if the module that the architecture needs is not installed."""
        if self.requires and not find_spec(self.requires[0]):
            raise MissingExtraError(f"{self.name} such as {model}", self.requires[1])

    def context(self, config: Mapping[str, Any]) -> int | None:
        """The maximum sequence length in tokens; None if the engine determines it."""
        return config.get("max_position_embeddings") if self.ends_at_context else None


def _register_mammut() -> None:
    from dialog_gen.clip.mammut.model import register_mammut

    register_mammut()


_ARCHITECTURES = {
    "blip-2": Architecture(protocol="blip2-two-turn", chat_template=BLIP2_CHAT_TEMPLATE),
    MAMMUT: Architecture(
        protocol="blip2-two-turn",
        served_by_vllm=False,
        ends_at_context=True,
        register_with_transformers=_register_mammut,
        requires=("open_clip", "train"),
        name="a MaMMUT",
    ),
}
_DECODERS_WITHOUT_VLLM = ("t5",)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a model with this config.json; one that is not in the table is treated like LLaVA."""
    found = _ARCHITECTURES.get(str(config.get("model_type")), Architecture())
    decoder = config.get("text_config", {}).get("model_type")
    return replace(found, served_by_vllm=False) if decoder in _DECODERS_WITHOUT_VLLM else found
