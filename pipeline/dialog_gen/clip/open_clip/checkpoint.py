"""Loads open_clip's models by name or from a folder, and checks that the activation fits the weights."""

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from safetensors import SafetensorError

from dialog_gen.clip.base import CLIP_MODELS, Clip
from dialog_gen.clip.open_clip.layout import CONFIG_FILE, WEIGHTS_FILE
from dialog_gen.clip.text.tokens import save_tokenizer
from dialog_gen.core.checksums import check_checksums
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import read_regular, write_json
from dialog_gen.core.hub_network import offline_if_unreachable
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.tensors import save_tensors, sha256_of_weights

_log = logging.getLogger(__name__)
_QUICK_GELU = "-quickgelu"
_HF_CONFIG_FILE = "config.json"
# open_clip lists only the multilingual T5; T5 has the same architecture.
arch_dict.setdefault("t5", arch_dict["mt5"])


def load_named(name: str, pretrained: str | None, *, allow_activation_mismatch: bool) -> Clip:
    """Loads open_clip's model of that name, with a pretrained tag or a safetensors file.

    Raises UsageError like `load_clip`.
    """
    config = check_named(name, pretrained, allow_activation_mismatch=allow_activation_mismatch)
    if pretrained is not None and (file := Path(pretrained)).is_file():
        check_checksums(file.parent, file.name)
        return _load(name, pretrained, name=name, config=config)
    # open_clip looks for the weights again when it loads them.
    with offline_if_unreachable() as no_network:
        if pretrained is not None:
            _fetch_weights(name, pretrained, no_network)
        return _load(name, pretrained, name=name, config=config)


@contextmanager
def _no_retries_told() -> Generator[None]:
    """Without a network, the Hub's library warns of each of its many retries; the error then says it once."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fetch_weights(name: str, tag: str, no_network: str | None) -> None:
    """Downloads the weights of a pretrained tag, unless they are there. open_clip would then say that they misfit.

    `no_network` says why the Hub cannot be reached, if that is known.
    """
    _log.info("fetching the weights %s of %s, unless they are in the cache", tag, name)
    try:
        with _no_retries_told():
            download_pretrained(get_pretrained_cfg(name, tag))
    except Exception as error:  # noqa: BLE001 - open_clip raises what its libraries raise
        # The error of an error of an error, each with the next one's text, and the last one over several lines.
        said = f"{no_network}." if no_network else str(error).rpartition("Last error: ")[2].strip().split("\n")[0]
        raise UsageError(
            f"the weights {tag!r} of {name} cannot be downloaded: {said} Or give a safetensors file in place of the "
            "tag."
        ) from None


def check_named(name: str, pretrained: str | None, *, allow_activation_mismatch: bool = False) -> dict[str, Any]:
    """Checks the names and returns the model's configuration; loads no weights. Raises UsageError like `load_clip`."""
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
    return config


def new_named(name: str, seed: int) -> Clip:
    """A model with random weights; `name` is a name of open_clip's or a JSON file with its model configuration.

    Raises UsageError if the name is unknown or the file is damaged.
    """
    if name.endswith(".json"):
        name, config = _register(Path(name))
    else:
        config = _model_config(name)
    return _new(name, name, config, seed)


def load_folder(folder: Path) -> Clip:
    """Loads the model of a checkpoint folder. Raises UsageError if the folder is damaged."""
    return _load(_location(folder), None, name=folder.name, config=read_config(folder))


def new_of_folder(folder: Path, seed: int) -> Clip:
    """The model of a checkpoint folder with random weights. Raises UsageError if the folder is damaged."""
    return _new(_location(folder), folder.name, read_config(folder), seed)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads open_clip's model configuration from a folder. Raises UsageError if the file is damaged."""
    try:
        return parse_json(read_regular(folder / CONFIG_FILE), finite=False)["model_cfg"]
    except OSError as error:
        raise UsageError(f"{folder / CONFIG_FILE} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{folder / CONFIG_FILE} is damaged: it holds no model_cfg.") from None


def save_folder(clip: Clip, folder: Path, changed: Mapping[str, torch.Tensor]) -> None:
    """Writes a folder for `load_folder`, the weights last; the tensors in `changed` replace those of the model."""
    write_json(folder / CONFIG_FILE, {"model_cfg": clip.config, "preprocess_cfg": clip.preprocess_config})
    if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
        save_tokenizer(clip.tokenizer, folder)
    if isinstance(text := getattr(clip.model, "text", None), HFTextEncoder):
        config: Any = text.config
        config.save_pretrained(folder)
    save_tensors({**clip.model.state_dict(), **changed}, folder / WEIGHTS_FILE)


def _new(location: str, name: str, config: dict[str, Any], seed: int) -> Clip:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _load(location, None, name=name, config=config, load_weights=False)


def _load(
    location: str, pretrained: str | None, *, name: str, config: dict[str, Any], load_weights: bool = True
) -> Clip:
    # A new model is random as a whole: open_clip would take a text tower of Hugging Face's with its weights.
    changes: dict[str, Any] = {"pretrained_text": False}
    folder = Path(location.removeprefix("local-dir:"))
    if "hf_model_name" in config["text_cfg"] and (folder / _HF_CONFIG_FILE).is_file():
        here = {"hf_model_name": str(folder), "hf_model_pretrained": False}
        changes["text_cfg"] = {**config["text_cfg"], **here}
    try:
        model: Any
        model, _, preprocess = open_clip.create_model_and_transforms(
            location, pretrained=pretrained, load_weights=load_weights, **changes
        )
    except RuntimeError as error:
        # After a first line, torch names one mismatching tensor per line.
        said = str(error).strip().split("\n")
        raise UsageError(f"the weights do not fit {name}: {said[min(1, len(said) - 1)].strip()}") from None
    except SafetensorError as error:
        raise UsageError(f"the weights of {name} are damaged: {error}. Get the file again.") from None
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise UsageError(f"open_clip cannot make a model from the configuration of {name}: {error}.") from None
    tokenizer = _tokenizer(location, name)
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


def _tokenizer(location: str, name: str) -> Any:
    advice = "Are all files of its tokenizer there, and whole?"
    try:
        tokenizer = open_clip.get_tokenizer(location)
    # The tokenizers library raises Exception itself.
    except Exception as error:  # noqa: BLE001
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(f"the tokenizer of {name} cannot be read: {said}. {advice}") from None
    if isinstance(tokenizer, open_clip.tokenizer.HFTokenizer) and tokenizer.tokenizer.pad_token_id is None:
        raise UsageError(f"the tokenizer of {name} has no padding token. {advice}")
    return tokenizer


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
        known = [*CLIP_MODELS.names(), *open_clip.list_models()]
        raise UsageError(f"unknown model {name!r}: {_nearest(name, known)} Or give a folder.")
    return config


def _register(file: Path) -> tuple[str, dict[str, Any]]:
    """Registers a configuration with open_clip under the file's stem; returns this name and the configuration."""
    try:
        config = parse_json(read_regular(file), finite=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"model configuration {file} cannot be read: {error}.") from None
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise UsageError(f"{file} is no model configuration of open_clip: it needs embed_dim, vision_cfg and text_cfg.")
    open_clip.add_model_config(file)
    return file.stem, config


def _location(folder: Path) -> str:
    return f"local-dir:{folder.resolve()}"


def _tags(name: str) -> str:
    return "one of " + (", ".join(list_pretrained_tags_by_model(name)) or "none")


def _nearest(name: str, known: list[str]) -> str:
    # The list of all names would be too long for a message.
    return did_you_mean(name, known).split("Known:")[0].strip() or "see open_clip.list_models()."
