"""Registers the released generators.

Their sizes are those of the config.json files at huggingface.co (llava-hf/llava-1.5-7b-hf, llava-hf/llava-1.5-13b-hf,
Salesforce/blip2-opt-2.7b, Salesforce/blip2-opt-6.7b, Salesforce/blip2-flan-t5-xl) with the defaults that they leave
out; see also arXiv:2310.03744 and arXiv:2301.12597.
"""

from typing import Any

from dialog_gen.models.registry import MODELS, ModelEntry

_CLIP_L = {
    "model_type": "clip_vision_model",
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_VIT_G = {
    "model_type": "blip_2_vision_model",
    "num_hidden_layers": 39,
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}


def _llava(layers: int, hidden: int, heads: int, intermediate: int) -> dict[str, Any]:
    text = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    text |= {"intermediate_size": intermediate, "vocab_size": 32064}
    return {
        "model_type": "llava",
        "image_seq_length": 576,
        "text_config": {"model_type": "llama", **text},
        "vision_config": _CLIP_L,
    }


def _blip2(**text: Any) -> dict[str, Any]:
    return {"model_type": "blip-2", "num_query_tokens": 32, "text_config": text, "vision_config": _VIT_G}


def _opt(hidden: int) -> dict[str, Any]:
    return _blip2(
        model_type="opt",
        num_hidden_layers=32,
        hidden_size=hidden,
        num_attention_heads=32,
        ffn_dim=4 * hidden,
        vocab_size=50304,
    )


_LLAVA = {"7b": _llava(32, 4096, 32, 11008), "13b": _llava(40, 5120, 40, 13824)}
_OPT = {"2.7b": _opt(2560), "6.7b": _opt(4096)}

for _size in ("7b", "13b"):
    MODELS.register(f"llava-1.5-{_size}")(
        ModelEntry(
            source=f"llava-hf/llava-1.5-{_size}-hf",
            protocol="llava-3qa",
            description=f"LLaVA-1.5, Vicuna-{_size.upper()}",
            licence="Llama 2 Community",
            gpu_memory_gb={"7b": 24, "13b": 40}[_size],
            image_tokens="576",
            max_model_len=2048,
            sizes=_LLAVA[_size],
        )
    )
for _size in ("2.7b", "6.7b"):
    MODELS.register(f"blip2-opt-{_size}")(
        ModelEntry(
            source=f"Salesforce/blip2-opt-{_size}",
            protocol="blip2-two-turn",
            description=f"BLIP-2, OPT-{_size.upper()}",
            licence="MIT; OPT's for the text model",
            gpu_memory_gb={"2.7b": 12, "6.7b": 24}[_size],
            image_tokens="32",
            dtype="float16",
            sizes=_OPT[_size],
        )
    )
MODELS.register("blip2-flan-t5-xl")(
    ModelEntry(
        source="Salesforce/blip2-flan-t5-xl",
        protocol="blip2-two-turn",
        description="BLIP-2, Flan-T5-XL (transformers engine only)",
        licence="MIT",
        gpu_memory_gb=12,
        image_tokens="32",
        dtype="bfloat16",
        sizes=_blip2(model_type="t5", num_layers=24, d_model=2048, d_ff=5120, num_heads=32, vocab_size=32128),
    )
)
