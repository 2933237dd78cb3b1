"""Registers the released models that follow instructions and take images of any size.

Check the licence on a model's card at huggingface.co before you rely on it. A prompt of these models has as many image
tokens as the image needs. The numbers here are for people and were not measured on the released files: they follow from
the settings that their processors had when they were published (tiles, pinpoints, tokens of a tile), and a later
revision of a model can have others. Verified, on small random models of these architectures, are the token ids of
prompts and the number of image tokens for their own settings. `dialog-gen models --check NAME` counts the tokens with
the files of the model itself. Qwen's are bounded by the architecture's `max_pixels`.
"""

from dialog_gen.models.registry import MODELS, ModelEntry

_APACHE, _GEMMA, _LLAMA = "Apache-2.0", "Gemma", "Llama 2 Community"
_INTERNVL_2B = "Qwen; Apache-2.0 on the card of InternVL3-2B"
"""The cards of the two forms of this model differ."""
_PROTOCOL = "instruct-3qa"
_LLAVA_NEXT, _ONEVISION = "2,341 at 640 x 480, 2,929 at most", "2,929 at 640 x 480, 7,371 at most"
_QWEN_2_5, _QWEN_3 = "391 at 640 x 480, 1,280 at most", "300 at 640 x 480, 980 at most"
_SMOL_64, _SMOL_81 = "832 at 640 x 480, 1,088 at most", "1,053 at 640 x 480, 1,377 at most"
_INTERNVL = "3,328 at 640 x 480 and at most"

_RELEASED: dict[str, tuple[str, str, int, str, str]] = {
    # name: Hugging Face id, licence, GB of GPU memory, tokens of an image, description
    "llava-next-mistral-7b": (
        *("llava-hf/llava-v1.6-mistral-7b-hf", _APACHE, 24, _LLAVA_NEXT),
        "LLaVA-NeXT (1.6), Mistral-7B",
    ),
    "llava-next-vicuna-7b": (
        *("llava-hf/llava-v1.6-vicuna-7b-hf", _LLAMA, 24, _LLAVA_NEXT),
        "LLaVA-NeXT (1.6), Vicuna-7B",
    ),
    "llava-onevision-7b": (
        *("llava-hf/llava-onevision-qwen2-7b-ov-hf", _APACHE, 24, _ONEVISION),
        "LLaVA-OneVision, Qwen2-7B",
    ),
    "qwen2.5-vl-3b": ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen Research", 12, _QWEN_2_5, "Qwen2.5-VL, 3B"),
    "qwen2.5-vl-7b": ("Qwen/Qwen2.5-VL-7B-Instruct", _APACHE, 24, _QWEN_2_5, "Qwen2.5-VL, 7B"),
    "qwen3-vl-4b": ("Qwen/Qwen3-VL-4B-Instruct", _APACHE, 16, _QWEN_3, "Qwen3-VL, 4B"),
    "qwen3-vl-8b": ("Qwen/Qwen3-VL-8B-Instruct", _APACHE, 24, _QWEN_3, "Qwen3-VL, 8B"),
    "smolvlm2-256m": ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", _APACHE, 4, _SMOL_64, "SmolVLM2, 256M"),
    "smolvlm2-500m": ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", _APACHE, 4, _SMOL_64, "SmolVLM2, 500M"),
    "smolvlm2-2.2b": ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", _APACHE, 8, _SMOL_81, "SmolVLM2, 2.2B"),
    "internvl3-2b": ("OpenGVLab/InternVL3-2B-hf", _INTERNVL_2B, 8, _INTERNVL, "InternVL3, 2B"),
    "internvl3-8b": ("OpenGVLab/InternVL3-8B-hf", "Qwen", 24, _INTERNVL, "InternVL3, 8B"),
    "gemma-3-4b": ("google/gemma-3-4b-it", _GEMMA, 16, "256", "Gemma 3, 4B"),
}

for _name, (_source, _licence, _memory, _tokens, _description) in _RELEASED.items():
    MODELS.register(_name)(
        ModelEntry(
            source=_source,
            protocol=_PROTOCOL,
            description=_description,
            licence=_licence,
            gpu_memory_gb=_memory,
            image_tokens=_tokens,
        )
    )

for _size, _memory in (("4b", 16), ("8b", 24)):
    MODELS.register(f"qwen3-vl-{_size}-thinking")(
        ModelEntry(
            source=f"Qwen/Qwen3-VL-{_size.upper()}-Thinking",
            protocol=_PROTOCOL,
            description=f"Qwen3-VL, {_size.upper()}: thinks before each answer, which takes many times as long",
            licence=_APACHE,
            gpu_memory_gb=_memory,
            image_tokens=_QWEN_3,
            thinks=True,
        )
    )

MODELS.register("paligemma2-3b")(
    ModelEntry(
        source="google/paligemma2-3b-mix-224",
        protocol="paligemma-questions",
        description="PaliGemma 2 mix, 3B: single questions with short answers",
        licence=_GEMMA,
        gpu_memory_gb=12,
        image_tokens="256",
    )
)
