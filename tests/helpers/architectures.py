"""Small random checkpoints of released architectures, with their file layouts, special tokens and prompt forms.

Each has a tokenizer of single bytes with the special tokens of the released one, and a chat template that writes the
same prompts as the released one for conversations of a user and an assistant with one image.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

hf: Any = transformers

_IM_ROLES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '@' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}" + _IM_ROLES.replace("@", "<|vision_start|><|image_pad|><|vision_end|>")
)
_IDEFICS = (
    "{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}{{ ':' }}"
    "{% else %}{{ ': ' }}{% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% else %}{{ '<image>' }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
_VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "{{ '<image>\n' }}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = m['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_PIXTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '[IMG]' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '[/INST]' }}"
    "{% else %}{{ m['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Kind:
    """How to build one architecture."""

    build: Callable[[PreTrainedTokenizerFast], tuple[Any, Any, Any]]
    """Tokenizer -> the configuration, the model's class and the processor."""
    named: Mapping[str, str]
    """Names and texts of special tokens."""
    others: Sequence[str] = ()
    words: Sequence[str] = ()
    """Words of the vocabulary that are no special tokens."""
    adds_bos: bool = False
    placeholder: str | None = "<image>"
    """What the template writes for an image."""


def tokenizer_of(kind: Kind) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, with the special tokens of the architecture."""
    special = list(dict.fromkeys([*kind.named.values(), *kind.others]))
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *kind.words]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in kind.words])
    if kind.adds_bos:
        bos = kind.named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **kind.named)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _qwen25(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
    text = {**_SIZES, **_ids(t), "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64}
    config = hf.Qwen2_5_VLConfig(
        text_config={**text, "model_type": "qwen2_5_vl_text"},
        vision_config={**vision, "fullatt_block_indexes": [1]},
        image_token_id=_id(t, "<|image_pad|>"),
        video_token_id=_id(t, "<|video_pad|>"),
        vision_start_token_id=_id(t, "<|vision_start|>"),
        vision_end_token_id=_id(t, "<|vision_end|>"),
    )
    images = hf.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    processor = hf.Qwen2_5_VLProcessor(images, t, hf.Qwen2VLVideoProcessor(), chat_template=_QWEN)
    return config, hf.Qwen2_5_VLForConditionalGeneration, processor


def _qwen3(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "mrope_interleaved": True, "rope_theta": 5e6}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64}
    config = hf.Qwen3VLConfig(
        text_config={**_SIZES, **_ids(t), "rope_parameters": rope, "model_type": "qwen3_vl_text"},
        vision_config={**vision, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
        image_token_id=_id(t, "<|image_pad|>"),
        video_token_id=_id(t, "<|video_pad|>"),
        vision_start_token_id=_id(t, "<|vision_start|>"),
        vision_end_token_id=_id(t, "<|vision_end|>"),
    )
    images = hf.Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
    )
    template = _IM_ROLES.replace("@", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = hf.Qwen3VLProcessor(images, t, hf.Qwen3VLVideoProcessor(), chat_template=template)
    return config, hf.Qwen3VLForConditionalGeneration, processor


def _llava_next(decoder: str, template: str) -> Callable[[PreTrainedTokenizerFast], tuple[Any, Any, Any]]:
    def build(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
        pinpoints = [[28, 56], [56, 28], [56, 56]]
        config = hf.LlavaNextConfig(
            vision_config={**_VISION, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
            text_config={**_SIZES, **_ids(t), "model_type": decoder},
            image_token_index=_id(t, "<image>"),
            image_grid_pinpoints=pinpoints,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
        images = hf.LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
        )
        processor = hf.LlavaNextProcessor(
            images,
            t,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
        return config, hf.LlavaNextForConditionalGeneration, processor

    return build


def _llava_onevision(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
    pinpoints = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = hf.LlavaOnevisionConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
        | {"vision_use_head": False},
        text_config={**_SIZES, **_ids(t), "model_type": "qwen2"},
        image_token_index=_id(t, "<image>"),
        video_token_index=_id(t, "<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    images = hf.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints)
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}{{ '\n' + c['text'] }}{% endif %}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    processor = hf.LlavaOnevisionProcessor(
        images,
        t,
        hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    return config, hf.LlavaOnevisionForConditionalGeneration, processor


def _idefics(smol: bool) -> Callable[[PreTrainedTokenizerFast], tuple[Any, Any, Any]]:
    def build(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
        config_class: Any = hf.SmolVLMConfig if smol else hf.Idefics3Config
        config = config_class(
            vision_config={**_VISION, "image_size": 28, "patch_size": 7},
            text_config={**_SIZES, **_ids(t), "model_type": "llama"},
            image_token_id=_id(t, "<image>"),
            scale_factor=2,
            pad_token_id=t.pad_token_id,
        )
        sizes: dict[str, Any] = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
        template = ("{{ '<|im_start|>' }}" if smol else "{{ '<|begin_of_text|>' }}") + _IDEFICS
        if smol:
            processor = hf.SmolVLMProcessor(
                hf.SmolVLMImageProcessor(**sizes),
                t,
                hf.SmolVLMVideoProcessor(),
                image_seq_len=4,
                chat_template=template,
            )
            return config, hf.SmolVLMForConditionalGeneration, processor
        processor = hf.Idefics3Processor(hf.Idefics3ImageProcessor(**sizes), t, image_seq_len=4, chat_template=template)
        return config, hf.Idefics3ForConditionalGeneration, processor

    return build


def _internvl(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
    config = hf.InternVLConfig(
        vision_config={**_VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config={**_SIZES, **_ids(t), "model_type": "qwen2"},
        image_token_id=_id(t, "<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = hf.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=False, max_patches=4)
    processor = hf.InternVLProcessor(
        images,
        t,
        hf.InternVLVideoProcessor(size={"height": 28, "width": 28}),
        image_seq_length=4,
        chat_template=_IM_ROLES.replace("@", "<IMG_CONTEXT>\n"),
    )
    return config, hf.InternVLForConditionalGeneration, processor


def _gemma3(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
    config = hf.Gemma3Config(
        vision_config={**_VISION, "image_size": 56, "patch_size": 14, "vision_use_head": False},
        text_config={**_SIZES, **_ids(t), "sliding_window": 512, "query_pre_attn_scalar": 32},
        mm_tokens_per_image=4,
        boi_token_index=_id(t, "<start_of_image>"),
        eoi_token_index=_id(t, "<end_of_image>"),
        image_token_index=_id(t, "<image_soft_token>"),
        eos_token_id=[t.eos_token_id, _id(t, "<end_of_turn>")],
    )
    images = hf.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(images, t, chat_template=_GEMMA, image_seq_length=4)
    return config, hf.Gemma3ForConditionalGeneration, processor


def _paligemma2(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
    t.add_bos_token = False
    images = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, t)
    config = hf.PaliGemmaConfig(
        vision_config={**_VISION, "image_size": 28, "patch_size": 14, "projection_dim": 64, "vision_use_head": False},
        text_config={**_SIZES, **_ids(t), "model_type": "gemma2", "sliding_window": 512, "num_image_tokens": 4},
        image_token_index=_id(t, "<image>"),
        projection_dim=64,
    )
    return config, hf.PaliGemmaForConditionalGeneration, processor


def _pixtral(t: PreTrainedTokenizerFast) -> tuple[Any, Any, Any]:
    config = hf.LlavaConfig(
        vision_config={**_VISION, "model_type": "pixtral", "image_size": 56, "patch_size": 14, "head_dim": 32},
        text_config={**_SIZES, **_ids(t), "model_type": "mistral", "sliding_window": None},
        image_token_index=_id(t, "[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    images = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14})
    processor = hf.PixtralProcessor(images, t, patch_size=14, chat_template=_PIXTRAL)
    return config, hf.LlavaForConditionalGeneration, processor


_QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_QWEN_OTHERS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "image_token": "<image>"}
_GRID = tuple(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))
_SMOL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")

KINDS: dict[str, Kind] = {
    "qwen2.5-vl": Kind(_qwen25, _QWEN_TOKENS, _QWEN_OTHERS, placeholder="<|image_pad|>"),
    "qwen3-vl": Kind(_qwen3, _QWEN_TOKENS, _QWEN_OTHERS, placeholder="<|image_pad|>"),
    "llava-next-mistral": Kind(_llava_next("mistral", _MISTRAL), _LLAMA, adds_bos=True),
    "llava-next-vicuna": Kind(_llava_next("llama", _VICUNA), _LLAMA, adds_bos=True),
    "llava-onevision": Kind(
        _llava_onevision, _QWEN_TOKENS | {"image_token": "<image>", "video_token": "<video>"}, ("<|im_start|>",)
    ),
    "smolvlm2": Kind(
        _idefics(smol=True),
        {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>", **_SMOL},
        _GRID,
    ),
    "idefics3": Kind(
        _idefics(smol=False),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<end_of_utterance>", "pad_token": "<pad>", **_SMOL},
        _GRID,
        adds_bos=True,
    ),
    "internvl3": Kind(
        _internvl,
        _QWEN_TOKENS
        | {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        | {"video_token": "<video>"},
        ("<|im_start|>",),
        placeholder="<IMG_CONTEXT>",
    ),
    "gemma3": Kind(
        _gemma3,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        | {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        ("<start_of_turn>", "<end_of_turn>"),
        _NEWLINES,
        adds_bos=True,
        placeholder="<start_of_image>",
    ),
    "paligemma2": Kind(
        _paligemma2,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "image_token": "<image>"},
        (),
        _NEWLINES,
        placeholder=None,
    ),
    "pixtral": Kind(
        _pixtral,
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        | {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
        ("[INST]", "[/INST]"),
        adds_bos=True,
        placeholder="[IMG]",
    ),
}


def random_model(name: str, folder: Path) -> Path:
    """Writes a small random model of an architecture of `KINDS` into `folder`."""
    kind = KINDS[name]
    tokenizer = tokenizer_of(kind)
    config, model_class, processor = kind.build(tokenizer)
    torch.manual_seed(0)
    model = model_class(config).float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    _use_released_names(folder / "model.safetensors")
    processor.save_pretrained(folder)
    return folder


def _use_released_names(weights: Path) -> None:
    """Released checkpoints with a SigLIP or a CLIP have one more level in the names of its tensors."""
    tensors = load_file(weights)
    if any("cls_token" in name for name in tensors):  # InternVL's own tower
        return
    for name in [
        name for name in tensors if re.search(r"vision_tower\.(embeddings|encoder|post_layernorm|pre_layrnorm)", name)
    ]:
        tensors[name.replace("vision_tower.", "vision_tower.vision_model.")] = tensors.pop(name)
    save_file(tensors, weights, metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))
