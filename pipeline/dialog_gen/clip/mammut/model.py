"""The MaMMUT model, and the classes with which Hugging Face's transformers generates with it."""

from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import CausalLMOutputWithPast

from dialog_gen.clip.mammut.decoder import MammutText
from dialog_gen.clip.mammut.layout import MODEL_TYPE
from dialog_gen.core.errors import UsageError

IMAGE_TOKEN = "<image>"  # noqa: S105 - no secret


class Mammut(nn.Module):
    """Image tower and text decoder, both from a CLIP, with new cross-attention layers from the text to the image."""

    def __init__(self, clip: Any, config: "MammutConfig") -> None:
        """`clip`: open_clip's `CLIP` of this configuration; its modules are used, not copied.

        Raises UsageError if the towers are not those of a plain CLIP, or if no layer of the decoder would read the
        image.
        """
        super().__init__()
        if not isinstance(clip, CLIP) or not isinstance(clip.visual, VisionTransformer):
            raise UsageError("MaMMUT needs a ViT and CLIP's own text tower, such as ViT-B-32 has.")
        layers = clip.transformer.resblocks
        if not all(isinstance(layer, ResidualAttentionBlock) for layer in layers):
            raise UsageError("MaMMUT needs a text tower of CLIP's own blocks, such as ViT-B-32 has.")
        if config.cross_attention_every > len(layers):
            raise UsageError(
                f"cross_attention_every = {config.cross_attention_every} leaves none of the {len(layers)} layers to "
                "read the image: choose a smaller number."
            )
        self.config = config
        self.visual: Any = clip.visual
        self.visual.output_tokens = True
        image_width: int = self.visual.ln_post.normalized_shape[0]
        pad_id: Any = config.pad_token_id
        self.text = MammutText(clip, image_width, config.cross_attention_every, pad_id)
        self.logit_scale: nn.Parameter = clip.logit_scale
        self.logit_bias: nn.Parameter | None = None

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Pixels (N, 3, H, W) -> image vectors (N, D), like open_clip's `CLIP.encode_image`."""
        return _normalized(self.visual(image)[0], normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (N, L) -> text vectors (N, D), like open_clip's `CLIP.encode_text`."""
        return _normalized(self.text(text), normalize)

    def read(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) -> keys and values for the captioning pass, with the shape of `MammutText.read`."""
        return self.text.read(self.visual(pixels)[1])


class MammutConfig(PreTrainedConfig):
    """The content of config.json in a model folder."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        clip: dict[str, Any] | None = None,
        preprocess: dict[str, Any] | None = None,
        cross_attention_every: int = 2,
        text_start: list[int] | None = None,
        text_end: list[int] | None = None,
        questions: list[str] | None = None,
        **others: Any,
    ) -> None:
        """`clip` and `preprocess` are open_clip's configuration of the model and of the preprocessing.

        `text_start` and `text_end` are the token ids that the tokenizer puts before and after a text. `questions` are
        the questions that a run asks by default.
        """
        self.clip, self.preprocess = clip or {}, preprocess or {}
        self.cross_attention_every = cross_attention_every
        self.text_start, self.text_end = text_start or [], text_end or []
        self.questions = questions or []
        text = self.clip.get("text_cfg", {})
        # transformers' `generate` reads these attributes.
        self.num_hidden_layers: int = text.get("layers", 12)
        self.num_attention_heads: int = text.get("heads", 8)
        self.hidden_size: int = text.get("width", 512)
        self.max_position_embeddings: int = text.get("context_length", 77)
        self.vocab_size: int = text.get("vocab_size", 49408) + 1
        self.image_token_id = self.vocab_size - 1
        if self.text_end:
            others.setdefault("eos_token_id", self.text_end[-1])
        others.setdefault("pad_token_id", text.get("pad_id", 0))
        super().__init__(**others)

    def new_clip(self) -> CLIP:
        """A CLIP of this configuration, with random weights."""
        config = dict(self.clip)
        vision, text = CLIPVisionCfg(**config.pop("vision_cfg")), CLIPTextCfg(**config.pop("text_cfg"))
        return CLIP(vision_cfg=vision, text_cfg=text, **config)


class MammutForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A MaMMUT that generates texts about images with transformers' `generate`."""

    config_class = MammutConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: MammutConfig, mammut: Mammut | None = None) -> None:
        """`mammut` is an existing model to wrap; by default a model with random weights is made."""
        super().__init__(config)
        self.mammut = Mammut(config.new_clip(), config) if mammut is None else mammut
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (N, L, V) of the token after each of `input_ids` (N, L).

        The image is given as `pixel_values` (N, 3, H, W), or as `image`, the result of `Mammut.read`. Raises ValueError
        if both are missing.
        """
        if image is None:
            if pixel_values is None:
                raise ValueError("needs pixel_values or image")
            image = self.mammut.read(pixel_values)
        kept = None if attention_mask is None else attention_mask.bool()
        logits: Any = self.mammut.text.next_token_logits(input_ids, image, kept, past_key_values)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    @torch.no_grad()
    def generate(self, *arguments: Any, pixel_values: Tensor | None = None, **options: Any) -> Any:
        """Like transformers' `generate`, but encodes each image only once."""
        if pixel_values is not None:
            options["image"] = self.mammut.read(pixel_values)
        generator: Any = super()
        return generator.generate(*arguments, **options)

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: a folder without a weight is damaged, and a complete one needs no random weights."""


class MammutProcessor:
    """Converts prompts and images to the inputs of `generate`, with the tokenizer and preprocessing of the training."""

    def __init__(self, config: MammutConfig, tokenizer: Any) -> None:
        """`tokenizer` is one of open_clip's tokenizers."""
        self.tokenizer = PromptTokenizer(config, tokenizer)
        self._transform: Any = image_transform_v2(PreprocessCfg(**config.preprocess), False)

    @classmethod
    def from_pretrained(cls, folder: Any, **_: Any) -> "MammutProcessor":
        """The processor of a model folder."""
        config: Any = MammutConfig.from_pretrained(folder)
        return cls(config, tokenizer_of(config, folder))

    def __call__(self, images: list[Any], text: list[str], **_: Any) -> BatchFeature:
        """PIL images and prompts -> input_ids and attention_mask (N, L), left-padded; pixel_values (N, 3, H, W).

        An image may be in a list of its own, as transformers' processors take it.
        """
        singles = [image[0] if isinstance(image, list) else image for image in images]
        pixels = torch.stack([self._transform(image) for image in singles])
        return BatchFeature({**self.padded([self.tokenizer.encode(prompt) for prompt in text]), "pixel_values": pixels})

    def padded(self, prompts: list[list[int]]) -> dict[str, Tensor]:
        """The token ids of prompts as input_ids and attention_mask (N, L), left-padded."""
        longest = max(map(len, prompts))
        missing = [longest - len(row) for row in prompts]
        ids = [[self.tokenizer.pad_id] * count + row for count, row in zip(missing, prompts, strict=True)]
        kept = [[0] * count + [1] * (longest - count) for count in missing]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(kept)}


class PromptTokenizer:
    """open_clip's tokenizer with an additional token for the image, and without start and end tokens."""

    def __init__(self, config: MammutConfig, tokenizer: Any) -> None:
        self._tokenizer, self._config = tokenizer, config
        self.pad_id: int = config.pad_token_id  # type: ignore[assignment]

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, the image token first. The caller adds the start token of a caption."""
        before, image, rest = prompt.partition(IMAGE_TOKEN)
        start, end = self._config.text_start, self._config.text_end
        # One token more than the context, so that `generate` can reject a prompt that is too long.
        length = self._config.max_position_embeddings + len(start) + len(end) + 1
        ids: list[int] = self._tokenizer([before + rest], context_length=length)[0].tolist()
        ids = ids[len(start) : ids.index(end[0], len(start))]
        return [self._config.image_token_id] * bool(image) + ids

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """The text of generated tokens, without special tokens."""
        special = {self._config.image_token_id, self._config.pad_token_id}
        special.update(self._config.text_start, self._config.text_end)
        kept = [token for token in token_ids if token not in special]
        inner = getattr(self._tokenizer, "tokenizer", self._tokenizer)
        return inner.decode(kept).strip()

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of the image token; None for any other."""
        return self._config.image_token_id if token == IMAGE_TOKEN else None


def tokenizer_of(config: MammutConfig, folder: Any) -> Any:
    """open_clip's tokenizer of a model folder. Raises ValueError if its padding id differs from the model's."""
    text = config.clip["text_cfg"]
    options: dict[str, Any] = {"context_length": config.max_position_embeddings, **text.get("tokenizer_kwargs", {})}
    if "hf_tokenizer_name" in text:
        tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), local_files_only=True, **options)
        if (pad_id := tokenizer.tokenizer.pad_token_id) != config.pad_token_id:
            raise ValueError(f"its tokenizer pads with {pad_id}, the model with {config.pad_token_id}")
        return tokenizer
    return open_clip.SimpleTokenizer(**options)


def _normalized(vectors: Tensor, wanted: bool) -> Tensor:
    return normalize(vectors, dim=-1) if wanted else vectors


def register_mammut() -> None:
    """Registers MaMMUT with transformers' Auto classes. Calling it again does nothing."""
    AutoConfig.register(MODEL_TYPE, MammutConfig, exist_ok=True)
    AutoModelForImageTextToText.register(MammutConfig, MammutForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(MammutConfig, MammutProcessor, exist_ok=True)
