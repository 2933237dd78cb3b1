"""The sizes of a generator that its speed and memory follow from, read from its config.json.

Nothing is loaded or downloaded: the released models have the sizes of their config.json in the registry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.output import quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """A decoder that reads image tokens, and the image tower that makes them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    mlp_matrices: int
    """3 if the feed-forward layers are gated, as in Llama, else 2."""
    vocabulary: int
    image_tokens: float
    """The tokens that an image takes in the prompt."""
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    vision_tokens: float
    """The patches that the image tower reads at a time."""
    vision_tiles: float = 1
    """The parts of an image that the tower reads one by one."""

    @property
    def layer_parameters(self) -> int:
        """Weights in the decoder's layers, each used once for each token: 2 FLOPs."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Weights of the output layer, which is needed only where a token is generated."""
        return self.vocabulary * self.hidden

    @property
    def vision_parameters(self) -> int:
        """Weights of the image tower's layers."""
        return self.vision_layers * self.vision_hidden * (4 * self.vision_hidden + 2 * self.vision_intermediate)

    @property
    def cached_numbers(self) -> int:
        """Numbers in the KV cache for one token: a key and a value for each layer and key-value head."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def dimensions(name: str, config: Mapping[str, Any], tokens: float | None = None) -> Dimensions:
    """The sizes of the model `name` with this config.json, with transformers' defaults for what it leaves out.

    `tokens` are those of an image, where they depend on its size. Raises UsageError for an architecture whose speed
    cannot be estimated: an encoder-decoder, a mixture of experts, or one without these sizes.
    """
    try:
        with quiet():
            from transformers import AutoConfig

            full: Any = AutoConfig.for_model(**config)
        text, vision = full.text_config, full.vision_config
        if text.is_encoder_decoder:
            raise UsageError(
                f"{name} has an encoder-decoder, whose speed cannot be estimated: give --rate, or --from a run."
            )
        if getattr(text, "num_experts", None):
            raise UsageError(
                f"{name} is a mixture of experts, whose speed cannot be estimated: give --rate, or --from a run."
            )
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        # OPT names it otherwise, and its layers are not gated.
        intermediate = getattr(text, "intermediate_size", None) or text.ffn_dim
        # Towers for images of any size have no size of their own; Qwen's names differ, too.
        side = _side(vision.image_size) // _side(vision.patch_size) if hasattr(vision, "image_size") else None
        tokens = tokens or image_tokens(config) or (side**2 if side else None)
        if tokens is None:
            raise ValueError("it does not say how many tokens an image takes")
        patches = tokens * _patches_per_token(full, side)
        vision_hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
        return Dimensions(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=head_dim,
            intermediate=intermediate,
            mlp_matrices=2 if hasattr(text, "ffn_dim") else 3,
            vocabulary=text.vocab_size,
            image_tokens=tokens,
            vision_layers=getattr(vision, "depth", None) or vision.num_hidden_layers,
            vision_hidden=vision_hidden,
            vision_intermediate=getattr(vision, "intermediate_size", None) or round(vision_hidden * vision.mlp_ratio),
            vision_tokens=side**2 if side else patches,
            vision_tiles=max(1, patches / side**2) if side else 1,
        )
    # Configurations of other architectures lack some of these, or hold something else there.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the speed of {name} ({config.get('model_type')}) cannot be estimated from its config.json ({error}): "
            "give --rate, or --from a run."
        ) from None


def _side(size: Any) -> int:
    """A side of a square, which may be given as a width and a height."""
    return int(size[0] if isinstance(size, list | tuple) else size)


def _patches_per_token(full: Any, side: int | None) -> float:
    """How many patches become one token of the prompt."""
    if merge := getattr(full.vision_config, "spatial_merge_size", None) or getattr(full, "scale_factor", None):
        return merge**2
    if ratio := getattr(full, "downsample_ratio", None):
        return 1 / ratio**2
    of_tile = getattr(full, "mm_tokens_per_image", None) or getattr(full, "num_query_tokens", None)
    return side**2 / of_tile if side and of_tile else 1


def image_tokens(config: Mapping[str, Any]) -> int | None:
    """The tokens of an image in a prompt by config.json; None if it does not say."""
    if (count := config.get("image_seq_length")) is not None:
        return int(count)
    if (count := config.get("num_query_tokens")) is not None:
        return int(count)
    vision = config.get("vision_config", {})
    if (
        isinstance(vision.get("image_size"), int)
        and isinstance(vision.get("patch_size"), int)
        and vision["patch_size"] > 0
    ):
        return (int(vision["image_size"]) // int(vision["patch_size"])) ** 2
    return None
