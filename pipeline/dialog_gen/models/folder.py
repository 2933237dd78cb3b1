"""Fetches model folders, and checks them before an engine is started."""

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dialog_gen.clip.mammut.layout import PROTOCOL_FILE
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.models.architectures import known_to_transformers, known_to_vllm_alone
from dialog_gen.models.json_files import read_object
from dialog_gen.models.template_trial import try_template
from dialog_gen.models.templates import render_chat
from dialog_gen.models.tokens import SpecialTokens
from dialog_gen.models.weights import ADAPTER
from dialog_gen.protocols.protocol import conversation

_FINGERPRINT_BYTES = 4 << 20
_TEMPLATE_FILES = ("chat_template.jinja", "additional_chat_templates/default.jinja")


def fingerprint(folder: Path) -> str:
    """Identifies a folder without a commit: a hash of the small files, and of the size and both ends of the weights."""
    digest = hashlib.sha256()
    suffixes = (".json", ".jinja", ".txt", ".model", ".safetensors")
    files = {p for p in folder.iterdir() if p.suffix in suffixes} | {folder / name for name in _TEMPLATE_FILES}
    for file in sorted(file for file in files if file.is_file()):
        with file.open("rb") as opened:
            size = opened.seek(0, io.SEEK_END)
            for start in sorted({0, max(0, size - _FINGERPRINT_BYTES)}):
                opened.seek(start)
                digest.update(opened.read(_FINGERPRINT_BYTES))
        digest.update(f"{file.name} {size}".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def unknown_model(name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not registered and is neither a Hugging Face id nor a folder."""
    hint = did_you_mean(name, known)
    return UsageError(f"unknown model {name!r}: {hint}; or give a Hugging Face id (user/name) or an existing folder.")


def fetch(hub_id: str, revision: str | None, *, weights: bool, known: Iterable[str]) -> tuple[Path, str]:
    """Fetches a model from the Hub; returns its folder and its commit. Never fetches pickled weights or code.

    Raises UsageError if the model cannot be fetched; if the id is wrong, the message lists the `known` models.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = ["*.json", "*.jinja", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise UsageError(
            f"no model {hub_id!r} on the Hub, or no access to it: {did_you_mean(hub_id, known)}."
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"model {hub_id!r} has no revision {revision!r}.") from None
    except HFValidationError:
        raise unknown_model(hub_id, known) from None
    # The Hub's client passes on the errors of its HTTP library, which differs between its versions.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"model {hub_id!r} could not be fetched and is not in the local cache ({type(error).__name__}: {reason}). "
            "Check the network, or give the path of a local folder."
        ) from error
    return folder, folder.name


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json. Raises UsageError if the folder is not a model folder."""
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER).is_file():
            raise UsageError(f"{folder} holds an adapter alone: merge it into its model (peft's merge_and_unload).")
        raise UsageError(f"{folder} is no model folder: it holds no config.json.")
    config = read_object(folder / "config.json")
    named: Any = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UsageError(f"{folder / 'config.json'}: architectures is no list of names. Fetch the file again.")
    if not named and "model_type" not in config:
        raise UsageError(f"{folder / 'config.json'} names no architecture.")
    for key in ("text_config", "vision_config"):
        if not isinstance(config.get(key, {}), dict):
            raise UsageError(f"{folder / 'config.json'}: {key} is no JSON object. Fetch the file again.")
    if not isinstance(config.get("model_type", ""), str):
        raise UsageError(f"{folder / 'config.json'}: model_type is no text. Fetch the file again.")
    return config


def check_kind(name: str, config: Mapping[str, Any]) -> None:
    """Raises UsageError for a model that reads no images, needs code from its repository, or is of an unknown type."""
    kind = str(config.get("model_type", "no model_type"))
    known = known_to_transformers(kind)
    if not known and config.get("auto_map"):
        raise UsageError(
            f"{name} ({kind}) needs code from its repository, which is never run: choose a version in the format "
            "of transformers, whose name often ends in -hf."
        )
    if not known and not known_to_vllm_alone(kind):
        raise UsageError(
            f"{name} ({kind}): the installed transformers has no such model_type. Choose another model, or install a "
            "newer transformers."
        )
    if not any(word in key for key in config for word in ("vision", "visual", "image")) and _is_language_model(config):
        raise UsageError(f"{name} ({kind}) is a model for text alone: choose one that takes images and text.")


def _is_language_model(config: Mapping[str, Any]) -> bool:
    architectures = [str(architecture) for architecture in config.get("architectures") or ()]
    return bool(config.get("is_encoder_decoder")) or any(a.endswith("ForCausalLM") for a in architectures)


def chat_template_of(folder: Path, fallback: str | None, tokens: SpecialTokens) -> str:
    """The folder's chat template, or `fallback` if it has none.

    Raises UsageError if there is none, or if it fails, takes too long or too much memory, or writes the time of day or
    something random.
    """
    from jinja2 import TemplateError

    template = _stored_template(folder)
    if template is None:
        template = fallback
    if template is None:
        raise UsageError(
            f"{folder} has no chat template (chat_template.jinja, or the key chat_template in tokenizer_config.json): "
            "without one the prompt would be guessed. Add the model's own template to the folder."
        )
    try_template(folder, template, tokens.named)
    try:
        prompt = render_chat(template, conversation("question"), tokens.named)
    # Templates for text only try to add strings to the list of contents.
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise UsageError(f"the chat template of {folder} fails: {error}. Is it made for images?") from None
    if "'type': 'image'" in prompt:
        raise UsageError(f"the chat template of {folder} is made for text alone: it would render images as {prompt!r}.")
    return template


def _stored_template(folder: Path) -> str | None:
    """The template that the model's processor uses, in its order: of several with names, the one named "default"."""
    for name in ("processor_config.json", "chat_template.json", *_TEMPLATE_FILES, "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        if name not in _TEMPLATE_FILES:
            template = _default(read_object(file).get("chat_template"), file)
        else:
            try:
                template = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{file} cannot be read: {error}.") from None
        if template is not None:
            return template
    return None


def _default(template: Any, file: Path) -> str | None:
    """The template itself, or that named "default" in a list of named ones or in a map."""
    if isinstance(template, list):
        try:
            template = {item["name"]: item["template"] for item in template}
        except (KeyError, TypeError):
            raise UsageError(f"{file}: chat_template lists no templates with names.") from None
    if isinstance(template, dict):
        if "default" not in template:
            raise UsageError(
                f"{file} has chat templates named {', '.join(template)}, and none named default: rename the one to use."
            )
        template = template["default"]
    return template if isinstance(template, str) else None


def max_pixels_of(folder: Path) -> int | None:
    """The pixels of an image at most by the settings of the folder's image processor; None if they do not say."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (file := folder / name).is_file():
            stored = read_object(file)
            settings: Any = stored.get("image_processor") or stored
            if not isinstance(settings, dict):
                raise UsageError(f"{file}: image_processor is no JSON object. Fetch the file again.")
            size: Any = settings.get("size") or {}
            found = settings.get("max_pixels") or (size.get("longest_edge") if isinstance(size, dict) else None)
            if isinstance(found, int):
                return found
    return None


def protocol_of(folder: Path) -> str | None:
    """The path of the protocol file in the folder; None if there is none."""
    return str(folder / PROTOCOL_FILE) if (folder / PROTOCOL_FILE).is_file() else None
