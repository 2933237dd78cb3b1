"""What transformers makes of a model folder's files, with what older versions left out of them or read otherwise.

Raises errors of any kind, as transformers does.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

_HEAD = "lm_head.weight"
_UNUSED = re.compile(r"\bvision_(tower|model)\S*\.head\.")
"""A SigLIP's pooled output, which no generator reads. Released configurations turn it off, others forget it."""
_AFTER_LAYERS = re.compile(r"\bvision_tower\S*\.post_layernorm\.")
"""What follows the last layer of a CLIP or SigLIP. A model that names the layer that it reads does not read this."""

_LATER = (
    ("patch_size", None, 0),
    ("vision_feature_select_strategy", None, ""),
    ("num_image_tokens", None, 0),
    ("num_query_tokens", None, 0),
    ("num_additional_image_tokens", 0, 1),
)
"""Attributes of processors, what they are if the files do not say, and another value."""


def read_configuration(folder: Path, stored: Mapping[str, Any], tensors: Collection[str]) -> Any:
    """The configuration of a folder whose config.json holds `stored` and whose weights are `tensors` (may be empty)."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # Before version 5, the decoder's own setting said whether it writes with its embeddings.
    tied = (stored.get("text_config") or {}).get("tie_word_embeddings") is True
    if tied and tensors and not any(name.endswith(_HEAD) for name in tensors):
        config.tie_word_embeddings = True
    return config


def needed_of(missing: Iterable[str], config: Any) -> list[str]:
    """Those of the tensors that weights lack without which the model cannot answer, sorted.

    `config` is transformers' configuration.
    """
    unused = [_UNUSED, *([_AFTER_LAYERS] if getattr(config, "vision_feature_layer", None) is not None else [])]
    return sorted(name for name in missing if not any(pattern.search(name) for pattern in unused))


def read_processor(folder: Path, **settings: Any) -> Any:
    """The processor of a folder; `settings` replace those in its files."""
    from transformers import AutoConfig, AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False, **settings)
    if any(getattr(processor, name, known) == unknown for name, unknown, known in _LATER):
        _complete(processor, AutoConfig.from_pretrained(folder, trust_remote_code=False))
    return processor


def _complete(processor: Any, config: Any) -> None:
    """Sets what stood in config.json alone until 2024, when models put an image's tokens into prompts themselves."""
    vision: Any = getattr(config, "vision_config", None)
    for name, source in (
        ("patch_size", vision),
        ("vision_feature_select_strategy", config),
        ("num_query_tokens", config),
    ):
        if getattr(processor, name, 0) is None:
            setattr(processor, name, getattr(source, name, None))
    if getattr(processor, "num_image_tokens", 0) is None:
        processor.num_image_tokens = (vision.image_size // vision.patch_size) ** 2
    if vision is not None and vision.model_type == "clip_vision_model":
        processor.num_additional_image_tokens = 1  # its class token
