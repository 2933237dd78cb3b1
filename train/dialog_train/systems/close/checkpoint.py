"""A trained decoder on disk.

FOLDER/decoder/             T5 and tokenizer as transformers writes them (safetensors)
FOLDER/projection.safetensors
FOLDER/adapter.safetensors  what training did to text vectors; evaluation does not need it
FOLDER/close.json           which CLIP, by name and the hash of its weights, and the recipe; written last
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dialog_gen.clip.loader import EMBEDDED, Clip, load_clip, sha256_of_weights
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_gen.core.tensors import save_tensors
from dialog_train.systems.close.adapters import Adapter, load_adapter, save_adapter
from dialog_train.systems.close.config import CloseRecipe
from dialog_train.systems.close.decoder import CloseDecoder, load_t5, no_progress_bars

CLOSE_FILE = "close.json"
_FORMAT = "dialog-train close 1"
_DECODER, _PROJECTION, _ADAPTER = "decoder", "projection.safetensors", "adapter.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """A decoder with the CLIP whose vectors it reads."""

    clip: Clip
    decoder: CloseDecoder
    adapter: Adapter
    recipe: dict[str, Any]
    """tasks, context, noise and adapter of the training."""
    weights_sha256: str
    """Hash of all tensors of the decoder and of the CLIP's hash."""


def save_close(
    folder: Path,
    clip: Clip,
    decoder: CloseDecoder,
    adapter: Adapter,
    recipe: CloseRecipe,
    changed: Mapping[str, Tensor],
) -> None:
    """Writes FOLDER; `changed` takes the place of the decoder's own parameters of these names."""
    if changed:
        decoder = copy.deepcopy(decoder)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                parameter.copy_(changed[name])
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        decoder.t5.save_pretrained(folder / _DECODER)
    decoder.tokenizer.save_pretrained(folder / _DECODER)
    save_tensors(decoder.projection.state_dict(), folder / _PROJECTION)
    save_adapter(adapter, folder / _ADAPTER)
    is_folder = recipe.model not in EMBEDDED and Path(recipe.model).is_dir()
    content = {
        "format": _FORMAT,
        "clip": {
            "model": str(Path(recipe.model).resolve()) if is_folder else recipe.model,
            "pretrained": recipe.pretrained,
            "allow_activation_mismatch": recipe.allow_activation_mismatch,
            "weights_sha256": clip.weights_sha256,
        },
        "recipe": recipe.model_dump(mode="json", include={"tasks", "context", "noise", "adapter"}),
    }
    write_json(folder / CLOSE_FILE, content)


def load_close(folder: Path) -> Close:
    """Reads what `save_close` wrote, without network but for a CLIP that is not there yet.

    Raises UsageError for a folder that holds none, a damaged one, and a CLIP that is gone or has other weights.
    """
    file = folder / CLOSE_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        reference, recipe = dict(content["clip"]), dict(content["recipe"])
        wanted = reference.pop("weights_sha256")
        if content["format"] != _FORMAT:
            raise UsageError(f"{file} has the format {content['format']!r}; this version reads {_FORMAT!r}.")
        projection = load_file(folder / _PROJECTION)
        adapter = load_adapter(folder / _ADAPTER)
    except FileNotFoundError:
        raise UsageError(f"{folder} is no folder that train/close.py wrote: {_lacking(folder)}.") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"{folder} is damaged ({error}): train it again.") from None
    t5, tokenizer = load_t5(str(folder / _DECODER), local=True)
    weight = projection["weight"]  # (prefix vectors * d_model, D)
    decoder = CloseDecoder(t5, tokenizer, weight.shape[1], weight.shape[0] // t5.config.d_model)
    decoder.projection.load_state_dict(projection)
    name = reference.pop("model")
    clip = load_clip(name, **reference)
    if clip.weights_sha256 != wanted:
        raise UsageError(
            f"{folder} was trained on vectors of {name} with the weights {wanted[:12]}, those there now are "
            f"{clip.weights_sha256[:12]}: put back the CLIP that it was trained with."
        )
    weights = sha256_of_weights({**decoder.state_dict(), f"clip {wanted}": torch.zeros(0)})
    return Close(clip=clip, decoder=decoder.eval(), adapter=adapter, recipe=recipe, weights_sha256=weights)


def _lacking(folder: Path) -> str:
    missing = [name for name in (CLOSE_FILE, _PROJECTION, _ADAPTER) if not (folder / name).exists()]
    return f"it has no {missing[0]}"
