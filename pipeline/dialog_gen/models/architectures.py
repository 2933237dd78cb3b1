"""What a run must know about a model's architecture beside its configuration: one table for all rooms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from dialog_gen.clip.mammut.layout import MODEL_TYPE as MAMMUT
from dialog_gen.core.errors import MissingExtraError
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A kind of model, told by `model_type` in its config.json."""

    protocol: str = "llava-3qa"
    """The protocol used when none is named."""
    chat_template: str | None = None
    """For folders without one."""
    served_by_vllm: bool = True
    ends_at_context: bool = False
    """Whether there is nothing behind `max_position_embeddings`, so that an engine must not go beyond it."""
    make_known: Callable[[], None] = lambda: None
    """Makes the architecture known to transformers where it is not one of its own; it may be called again."""
    requires: tuple[str, str] | None = None
    """A module that the architecture needs, and the extra of this package that brings it."""
    name: str = "a model"
    """What messages call it."""

    def check_installed(self, model: str) -> None:
        """Raises MissingExtraError where the module that the architecture needs is not installed."""
        if self.requires and not find_spec(self.requires[0]):
            raise MissingExtraError(f"{self.name} such as {model}", self.requires[1])

    def context(self, config: Mapping[str, Any]) -> int | None:
        """The longest sequence in tokens; None where engines find it out."""
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
        make_known=_register_mammut,
        requires=("open_clip", "train"),
        name="a MaMMUT",
    ),
}
_DECODERS_WITHOUT_VLLM = ("t5",)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json; what is not in the table is treated as LLaVA is."""
    found = _ARCHITECTURES.get(str(config.get("model_type")), Architecture())
    decoder = config.get("text_config", {}).get("model_type")
    return replace(found, served_by_vllm=False) if decoder in _DECODERS_WITHOUT_VLLM else found
