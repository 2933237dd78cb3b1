"""CLIP-like models in and out: open_clip's models, its file formats, and a guard against the wrong activation.

A checkpoint is a folder in open_clip's own layout: `open_clip_config.json`, `open_clip_model.safetensors` and, where
the tokenizer is not CLIP's, its files. It loads with

    open_clip.create_model_and_transforms("local-dir:FOLDER")
    open_clip.create_model_and_transforms(NAME, pretrained="FOLDER/open_clip_model.safetensors")

A text tower of Hugging Face's adds its `config.json`, which open_clip would get from the Hub; here none is needed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from safetensors import SafetensorError

from dialog_gen.clip.mammut import MODEL_TYPE
from dialog_gen.clip.mammut.decoder import MammutText
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import write_json
from dialog_gen.core.tensors import save_tensors

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

EMBEDDED = {"shapes-clip": Path(__file__).parents[1] / "shapes" / "checkpoints" / "shapes-clip"}
"""Models that are shipped with the package."""

_QUICK_GELU = "-quickgelu"
_HF_CONFIG_FILE = "config.json"
# open_clip lists the multilingual T5 only; the architecture is the same.
arch_dict.setdefault("t5", arch_dict["mt5"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A loaded model with what belongs to it."""

    model: Any
    """open_clip's `CLIP` or `CustomTextCLIP`, float32, in evaluation mode."""
    preprocess: Any
    """PIL image -> (3, H, W), without augmentation."""
    tokenizer: Any
    """List of texts -> token ids (N, context length)."""
    name: str
    config: dict[str, Any]
    """open_clip's model configuration."""
    preprocess_config: dict[str, Any]
    weights_sha256: str
    """Hash of all tensors with their names: what tells two models apart, wherever they were loaded from."""


def load_clip(name: str, pretrained: str | None = None, *, allow_activation_mismatch: bool = False) -> Clip:
    """A model by open_clip's name and a pretrained tag or a safetensors file, a checkpoint folder, or `shapes-clip`.

    The folder of a MaMMUT gives one whose `model` is a `dialog_gen.clip.mammut.model.Mammut`.

    OpenAI's and LAION-400M's weights were trained with QuickGELU. Under `ViT-B-32` they load and lose accuracy; that is
    an error here unless `allow_activation_mismatch`, which reproduces published baselines that overlooked it.

    Raises UsageError for an unknown name or tag, pickled weights, weights of another architecture, or that mismatch.
    """
    if pretrained is None and is_mammut(Path(name)):
        from dialog_gen.clip.mammut.folder import load_mammut

        return load_mammut(Path(name))
    location, weights, known_as, config = _locate(name, pretrained, allow_activation_mismatch)
    return _load(location, weights, name=known_as, config=config)


def new_clip(name: str, seed: int) -> Clip:
    """A model with weights drawn at random from `seed`, to be trained from scratch.

    `name`: open_clip's name of a model, a JSON file of open_clip's model configuration, or a checkpoint folder or
    `shapes-clip`, of which all but the weights is taken.

    Raises UsageError for an unknown name or a damaged file.
    """
    if name.endswith(".json"):
        location, known_as, config = _register(Path(name))
    elif (folder := EMBEDDED.get(name) or Path(name)).is_dir():
        location, _, known_as, config = _locate(str(folder), None, allow_activation_mismatch=False)
    else:
        location = known_as = name
        config = _model_config(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load(location, None, name=known_as, config=config, load_weights=False)


def check_clip(name: str, pretrained: str | None = None) -> None:
    """Raises UsageError where `load_clip` would for the names alone; loads nothing."""
    if pretrained is not None or not is_mammut(Path(name)):
        _locate(name, pretrained, allow_activation_mismatch=False)


def is_mammut(folder: Path) -> bool:
    """Whether it is the folder of a MaMMUT: see `dialog_gen.clip.mammut.folder`."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _locate(
    name: str, pretrained: str | None, allow_activation_mismatch: bool
) -> tuple[str, str | None, str, dict[str, Any]]:
    """What open_clip calls the model and its weights, the name it goes by here, and its configuration."""
    folder = EMBEDDED.get(name) or Path(name)
    if folder.is_dir():
        if pretrained is not None:
            raise UsageError(f"{name} is a checkpoint with weights of its own: leave out pretrained = {pretrained!r}.")
        if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise UsageError(f"{name} is no checkpoint folder: it needs {CONFIG_FILE} and {WEIGHTS_FILE}.")
        return f"local-dir:{folder.resolve()}", None, folder.name, _read_config(folder)
    config = _model_config(name)
    if pretrained is None:
        raise UsageError(f"{name} without weights is random: give a pretrained tag, {_tags(name)}; or safetensors.")
    if Path(pretrained).is_file():
        if Path(pretrained).suffix != ".safetensors":
            raise UsageError(f"{pretrained} may hold pickled code: convert it to safetensors first.")
    elif pretrained not in list_pretrained_tags_by_model(name):
        raise UsageError(f"{name} has no pretrained tag {pretrained!r}: {_tags(name)}; or give a safetensors file.")
    elif not allow_activation_mismatch:
        _check_activation(name, config, pretrained)
    return name, pretrained, name, config


def save_clip(clip: Clip, folder: Path, changed: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes what `load_clip` loads; `changed` takes the place of the model's own tensors. The weights come last."""
    if isinstance(getattr(clip.model, "text", None), MammutText):
        from dialog_gen.clip.mammut.folder import save_mammut

        save_mammut(clip, folder, changed or {})
        return
    write_json(folder / CONFIG_FILE, {"model_cfg": clip.config, "preprocess_cfg": clip.preprocess_config})
    if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
    if isinstance(text := getattr(clip.model, "text", None), HFTextEncoder):
        config: Any = text.config
        config.save_pretrained(folder)
    save_tensors({**clip.model.state_dict(), **(changed or {})}, folder / WEIGHTS_FILE)


def sha256_of_weights(state: dict[str, torch.Tensor]) -> str:
    """Hash of tensors with their names, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _load(
    location: str, pretrained: str | None, *, name: str, config: dict[str, Any], load_weights: bool = True
) -> Clip:
    changes: dict[str, Any] = {}
    folder = Path(location.removeprefix("local-dir:"))
    if "hf_model_name" in config["text_cfg"] and (folder / _HF_CONFIG_FILE).is_file():
        here = {"hf_model_name": str(folder), "hf_model_pretrained": False}
        changes["text_cfg"] = {**config["text_cfg"], **here}
    try:
        model: Any
        model, _, preprocess = open_clip.create_model_and_transforms(
            location, pretrained=pretrained, load_weights=load_weights, **changes
        )
        tokenizer = open_clip.get_tokenizer(location)
    except RuntimeError as error:
        # torch names the mismatching tensors line by line.
        said = str(error).strip().split("\n")
        raise UsageError(f"the weights do not fit {name}: {said[min(1, len(said) - 1)].strip()}") from None
    except SafetensorError as error:
        raise UsageError(f"the weights of {name} are damaged: {error}. Get the file again.") from None
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UsageError(f"open_clip makes no model of the configuration of {name}: {error}.") from None
    model.eval()
    return Clip(
        model=model,
        preprocess=preprocess,
        tokenizer=tokenizer,
        name=name,
        config=config,
        preprocess_config=open_clip.get_model_preprocess_cfg(model),
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


def _check_activation(name: str, config: dict[str, Any], tag: str) -> None:
    needed = bool(get_pretrained_cfg(name, tag).get("quick_gelu", False))
    if bool(config.get("quick_gelu", False)) == needed:
        return
    right = name + _QUICK_GELU if needed else name.removesuffix(_QUICK_GELU)
    raise UsageError(
        f"the weights {tag!r} were trained {'with' if needed else 'without'} QuickGELU, {name} "
        f"{'lacks' if needed else 'has'} it: use {right}, or allow_activation_mismatch to reproduce results that "
        "overlooked it."
    )


def _model_config(name: str) -> dict[str, Any]:
    config: Any = open_clip.get_model_config(name)
    if config is None:
        raise UsageError(
            f"unknown model {name!r}: {_nearest(name, [*EMBEDDED, *open_clip.list_models()])}; or give a folder."
        )
    return config


def _register(file: Path) -> tuple[str, str, dict[str, Any]]:
    """Makes a configuration known to open_clip under the file's name: what `_load` needs of it."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"model configuration {file} cannot be read: {error}.") from None
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise UsageError(f"{file} is no model configuration of open_clip: it needs embed_dim, vision_cfg and text_cfg.")
    open_clip.add_model_config(file)
    return file.stem, file.stem, config


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / CONFIG_FILE} is damaged: it holds no model_cfg.") from None


def _tags(name: str) -> str:
    return "one of " + (", ".join(list_pretrained_tags_by_model(name)) or "none")


def _nearest(name: str, known: list[str]) -> str:
    # All names would fill the screen.
    return did_you_mean(name, known).split("Known:")[0].strip() or "see open_clip.list_models()"
