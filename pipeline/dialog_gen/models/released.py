"""Registers the released generators."""

from dialog_gen.models.registry import MODELS, ModelEntry

for _size in ("7b", "13b"):
    MODELS.register(f"llava-1.5-{_size}")(
        ModelEntry(
            source=f"llava-hf/llava-1.5-{_size}-hf",
            protocol="llava-3qa",
            description=f"LLaVA-1.5, Vicuna-{_size.upper()}",
            max_model_len=2048,
        )
    )
for _size in ("2.7b", "6.7b"):
    MODELS.register(f"blip2-opt-{_size}")(
        ModelEntry(
            source=f"Salesforce/blip2-opt-{_size}",
            protocol="blip2-two-turn",
            description=f"BLIP-2, OPT-{_size.upper()}",
            dtype="float16",
        )
    )
MODELS.register("blip2-flan-t5-xl")(
    ModelEntry(
        source="Salesforce/blip2-flan-t5-xl",
        protocol="blip2-two-turn",
        description="BLIP-2, Flan-T5-XL (transformers engine only)",
        dtype="bfloat16",
    )
)
