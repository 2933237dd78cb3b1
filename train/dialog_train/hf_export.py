"""Exports a native open_clip CLIP as a `CLIPModel` of Hugging Face's transformers."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json, writing

# The eos_token_id with which CLIPTextConfig pools at the highest token id, as open_clip's `argmax` does.
_POOL_AT_HIGHEST_ID = 2
# Pillow's resampling constants.
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}
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


def export_hf(clip: Clip, folder: Path) -> None:
    """Writes `folder` for `CLIPModel.from_pretrained`, with the image processor's settings and the tokenizer.

    Raises UsageError for a model that CLIPModel cannot express: the image tower must be a plain ViT and the text tower
    CLIP's own.
    """
    exported = _as_clip_model(clip)
    size, mean, std = (clip.preprocess_config[key] for key in ("size", "mean", "std"))
    height, width = (size, size) if isinstance(size, int) else size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height},
        "resample": _RESAMPLE[clip.preprocess_config["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }
    with writing(folder):
        exported.save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", processor)
        if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
            clip.tokenizer.save_pretrained(folder)


def _as_clip_model(clip: Clip) -> Any:
    model: Any = clip.model
    exported: Any = CLIPModel(_config(clip))
    state = _state(model.state_dict())
    expected = exported.state_dict()
    if problem := _difference({k: v.shape for k, v in expected.items()}, {k: v.shape for k, v in state.items()}):
        raise UsageError(f"{clip.name} cannot become a CLIPModel: {problem}.")
    exported.load_state_dict(state)
    return exported


def _config(clip: Clip) -> CLIPConfig:
    text, vision = clip.config["text_cfg"], clip.config["vision_cfg"]
    model: Any = clip.model
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
