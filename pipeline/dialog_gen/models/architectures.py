"""The table of architectures: what a run must know about a model apart from its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dialog_gen.clip.mammut.layout import MODEL_TYPE as MAMMUT
from dialog_gen.core.errors import MissingExtraError
from dialog_gen.core.output import quiet
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, PALIGEMMA_CHAT_TEMPLATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A kind of model, identified by `model_type` in its config.json."""

    protocol: str = "llava-3qa"
    """The protocol that is used by default."""
    chat_template: str | None = None
    """The template for model folders without one."""
    writes_placeholder: bool = True
    """Whether a prompt contains a placeholder for the image; otherwise the processor puts the image before the text."""
    fixed_image_tokens: bool = False
    """Whether every image takes as many tokens as config.json says."""
    max_pixels: int | None = None
    """The pixels of an image at most, unless the user says otherwise; None for as many as its processor takes."""
    takes_max_pixels: bool = False
    """Whether the processor has settings `min_pixels` and `max_pixels`."""
    served_by_vllm: bool = True
    """Whether vLLM supports the architecture."""
    takes_several_images: bool = True
    """Whether the released models were made for prompts with several images."""
    vllm_takes_several_images: bool = True
    """Whether vLLM makes the same prompt of several images as the model's processor."""
    ends_at_context: bool = False
    """Whether the model has no positions beyond `max_position_embeddings`, so that no engine may exceed it."""
    register_with_transformers: Callable[[], None] = lambda: None
    """Registers the architecture with transformers if it is not one of its own; can be called more than once."""
    brings_tokenizer: bool = False
    """Whether the tokenizer is part of this package, so that a model folder needs no files of it."""
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


# As released, an image of a Qwen model can take 16,384 tokens. Its authors recommend 256 to 1,280 (arXiv 2502.13923); a
# token is 28 x 28 pixels, in Qwen3-VL 32 x 32.
_QWEN = Architecture(max_pixels=1280 * 28 * 28, takes_max_pixels=True)
_QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_WITHOUT_PECULIARITIES = ("llava_next", "llava_onevision", "internvl", "gemma3", "idefics3")

_ARCHITECTURES = {
    **dict.fromkeys(_WITHOUT_PECULIARITIES, Architecture()),
    **dict.fromkeys(_QWENS, _QWEN),
    "blip-2": Architecture(
        protocol="blip2-two-turn",
        chat_template=BLIP2_CHAT_TEMPLATE,
        writes_placeholder=False,
        fixed_image_tokens=True,
        takes_several_images=False,
    ),
    "llava": Architecture(fixed_image_tokens=True, takes_several_images=False),
    "llava_next": Architecture(takes_several_images=False),
    # Of several images, each is one tile (arXiv 2408.03326); vLLM cuts each into tiles as if it were alone.
    "llava_onevision": Architecture(vllm_takes_several_images=False),
    "paligemma": Architecture(
        protocol="paligemma-questions",
        chat_template=PALIGEMMA_CHAT_TEMPLATE,
        writes_placeholder=False,
        takes_several_images=False,
    ),
    "smolvlm": Architecture(requires=("num2words", "smolvlm"), name="a SmolVLM"),
    MAMMUT: Architecture(
        protocol="blip2-two-turn",
        served_by_vllm=False,
        ends_at_context=True,
        takes_several_images=False,
        register_with_transformers=_register_mammut,
        brings_tokenizer=True,
        requires=("open_clip", "train"),
        name="a MaMMUT",
    ),
}
_TOWERS_OF_ANY_SIZE = ("pixtral",)
ENCODER_DECODERS = ("t5",)
"""Text models that are encoder-decoders; vLLM has none of them."""


def known_to_transformers(model_type: str) -> bool:
    """Whether transformers has such models, with those of this package; takes seconds if it is not in the table."""
    if model_type in _ARCHITECTURES:
        return True
    with quiet():
        from transformers import CONFIG_MAPPING

        return model_type in CONFIG_MAPPING


def known_to_vllm_alone(model_type: str) -> bool:
    """Whether vLLM is installed and has a configuration for models that transformers lacks; takes seconds."""
    if not find_spec("vllm"):
        return False
    # It says much when it is imported; the user's error should stand alone.
    with quiet():
        return model_type in getattr(import_module("vllm.transformers_utils.config"), "_CONFIG_REGISTRY", ())


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a model with this config.json; one that is not in the table is treated like LLaVA."""
    found = _ARCHITECTURES.get(str(config.get("model_type")), Architecture())
    decoder, tower = (config.get(key, {}).get("model_type") for key in ("text_config", "vision_config"))
    if tower in _TOWERS_OF_ANY_SIZE:
        found = replace(found, fixed_image_tokens=False)
    if config.get("model_type") == "llava" and tower not in (None, "clip_vision_model"):
        # Later models of LLaVA's form, such as LLaVA-Interleave (arXiv 2407.07895) and Pixtral.
        found = replace(found, takes_several_images=True)
    return replace(found, served_by_vllm=False) if decoder in ENCODER_DECODERS else found
