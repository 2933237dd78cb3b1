"""Exports a native open_clip CLIP as a `CLIPModel` of Hugging Face's transformers."""

from pathlib import Path
from typing import Any

import torch
from open_clip import CoCa
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import give_usual_mode, writing
from dialog_gen.core.progress import without_transformers_bars
from dialog_train.hf_processors import hf_tokenizer, image_processor, save_processors
from dialog_train.outputs import checkpoint_folder

# The eos_token_id with which CLIPTextConfig pools at the highest token id, as open_clip's `argmax` does.
_POOL_AT_HIGHEST_ID = 2
# Vectors of unit norm; the two programs add in another order.
_TOLERANCE = 1e-4
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def check_export_hf(clip: Clip) -> None:
    """Raises UsageError if `export_hf` cannot express the model."""
    _as_clip_model(clip)
    image_processor(clip)
    hf_tokenizer(clip)


def export_hf(clip: Clip, folder: Path) -> None:
    """Writes `folder` for transformers' `CLIPModel` and `CLIPProcessor`, and for sentence-transformers.

    `dialog_train.hf_processors` says where they read texts and images in another way than open_clip.

    Raises UsageError for a model that CLIPModel cannot express: the image tower must be a plain ViT and the text tower
    CLIP's own.
    """
    exported = _as_clip_model(clip)
    with writing(folder), without_transformers_bars():
        save_processors(clip, folder)
        exported.save_pretrained(folder)
        give_usual_mode(*folder.glob("*.safetensors"))


def export_checkpoint(checkpoint: Path, out: Path) -> None:
    """`export_hf` for a checkpoint folder, or for the OUT of a training, whose model it takes.

    Raises UsageError for what is no checkpoint, as `export_hf` does, and if `out` exists.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists: choose another folder.")
    export_hf(load_clip(str(checkpoint_folder(checkpoint)), needs=()), out)


def _as_clip_model(clip: Clip) -> Any:
    model: Any = clip.model
    exported: Any = CLIPModel(_config(clip))
    state = _state(model.state_dict())
    expected = exported.state_dict()
    if problem := _difference({k: v.shape for k, v in expected.items()}, {k: v.shape for k, v in state.items()}):
        raise UsageError(f"{clip.name} cannot become a CLIPModel: {problem}.")
    exported.load_state_dict(state)
    _require_same_vectors(clip, exported.eval())
    return exported


def _require_same_vectors(clip: Clip, exported: Any) -> None:
    """Raises UsageError if a setting without weights, such as another pooling, makes the vectors differ."""
    model: Any = clip.model
    generator = torch.Generator().manual_seed(0)
    device = model.logit_scale.device
    pixels = torch.randn(2, 3, *model.visual.image_size, generator=generator)
    tokens = torch.randint(1, model.vocab_size - 1, (2, model.context_length), generator=generator)
    # The end of a text: the highest id, and the one that the tower pools at.
    end = model.text_eos_id if model.text_pool_type == "eos" else model.vocab_size - 1
    tokens[tokens == end] = 0 if end else 1
    tokens[0, -1] = tokens[1, model.context_length // 2] = end
    with torch.inference_mode():
        found = exported(input_ids=tokens, pixel_values=pixels)
        own = model.encode_text(tokens.to(device)), model.encode_image(pixels.to(device))
    pairs = zip(("text", "image"), (found.text_embeds, found.image_embeds), own, strict=True)
    for which, ours, theirs in pairs:
        if not torch.allclose(ours, normalize(theirs.float().cpu(), dim=-1), rtol=0, atol=_TOLERANCE):
            raise UsageError(
                f"{clip.name} cannot become a CLIPModel: its {which} tower has settings that CLIPModel lacks, so the "
                "vectors would differ."
            )


def _config(clip: Clip) -> CLIPConfig:
    if clip.format != "open_clip":
        # Its `model` is only a part of it, such as the untuned CLIP beside a third tower.
        raise UsageError(
            f"{clip.name} cannot become a CLIPModel: it is a {clip.kind}, and CLIPModel has an image tower and a text "
            "tower only."
        )
    text, vision = clip.config["text_cfg"], clip.config["vision_cfg"]
    model: Any = clip.model
    if isinstance(model, CoCa) or vision.get("attentional_pool") or text.get("embed_cls"):
        raise UsageError(
            f"{clip.name} cannot become a CLIPModel: it has towers of CoCa, which pool by attention or by a token of "
            "their own. open_clip reads its checkpoint folder as it is."
        )
    if (
        not hasattr(model, "token_embedding")
        or not isinstance(vision.get("layers"), int)
        or "timm_model_name" in vision
    ):
        raise UsageError(f"{clip.name} cannot become a CLIPModel: only a native CLIP with a ViT image tower can.")
    blocks = model.transformer.resblocks, model.visual.transformer.resblocks
    hidden_act = "quick_gelu" if clip.config.get("quick_gelu") else "gelu"
    pooled_at_end = model.text_pool_type == "eos"
    if not pooled_at_end and model.text_pool_type != "argmax":
        raise UsageError(f"{clip.name} cannot become a CLIPModel: its text tower pools by {model.text_pool_type!r}.")
    embed_dim: int = clip.config["embed_dim"]
    return CLIPConfig(
        projection_dim=embed_dim,
        logit_scale_init_value=float(model.logit_scale.detach()),
        text_config={
            "vocab_size": model.vocab_size,
            "hidden_size": text["width"],
            "intermediate_size": blocks[0][0].mlp.c_fc.out_features,
            "num_hidden_layers": len(blocks[0]),
            "num_attention_heads": blocks[0][0].attn.num_heads,
            "max_position_embeddings": model.context_length,
            "hidden_act": hidden_act,
            "projection_dim": embed_dim,
            "bos_token_id": None,  # the tokenizer has it; the default may lie outside the vocabulary
            "eos_token_id": model.text_eos_id if pooled_at_end else _POOL_AT_HIGHEST_ID,
        },
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": blocks[1][0].mlp.c_fc.out_features,
            "num_hidden_layers": len(blocks[1]),
            "num_attention_heads": blocks[1][0].attn.num_heads,
            "image_size": model.visual.image_size[0],
            "patch_size": model.visual.patch_size[0],
            "hidden_act": hidden_act,
            "projection_dim": embed_dim,
        },
    )


def _state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames open_clip's tensors to transformers' names."""
    names = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "logit_scale": "logit_scale",
    }
    projections = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
    norms = {
        "ln_final": "text_model.final_layer_norm",
        # transformers' own spelling
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head, _, last = name.rpartition(".")
        if name in names:
            found[names[name]] = tensor
        elif name in projections:
            found[projections[name]] = tensor.T.contiguous()
        elif head in norms:
            found[f"{norms[head]}.{last}"] = tensor
        elif ".resblocks." in f".{name}":
            found |= _layer(name, tensor)
        else:
            found[name] = tensor
    found["logit_scale"] = found["logit_scale"].reshape(())
    return found


def _layer(name: str, tensor: Tensor) -> dict[str, Tensor]:
    tower = "vision_model" if name.startswith("visual.") else "text_model"
    number, _, rest = name.partition("resblocks.")[2].partition(".")
    prefix = f"{tower}.encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{which}_proj.{kind}": part.contiguous() for which, part in parts}
    place, _, last = rest.rpartition(".")
    return {f"{prefix}.{_LAYER.get(place, place)}.{last}": tensor}


def _difference(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> str | None:
    # Position ids are buffers that only some versions of transformers list.
    keys = {k for k in expected if not k.endswith("position_ids")} ^ set(found)
    if keys:
        return f"they differ in {sorted(keys)[0]}"
    wrong = [k for k, shape in found.items() if expected[k] != shape]
    return f"{wrong[0]} has the shape {tuple(found[wrong[0]])}" if wrong else None
