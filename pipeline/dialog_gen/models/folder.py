"""Fetches model folders, and checks them before an engine is started."""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dialog_gen.clip.mammut.layout import PROTOCOL_FILE
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.models.templates import render_chat
from dialog_gen.protocols.protocol import conversation

_FINGERPRINT_BYTES = 4 << 20


def fingerprint(folder: Path) -> str:
    """Identifies a folder without a commit: a hash of the small files, and of the size and both ends of the weights."""
    digest = hashlib.sha256()
    for file in sorted(
        p for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".txt", ".model", ".safetensors")
    ):
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
        raise UsageError(f"{folder} is no model folder: it holds no config.json.")
    config = _read_object(folder / "config.json")
    if "architectures" not in config:
        raise UsageError(f"{folder / 'config.json'} names no architecture.")
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object.")
    return content


def check_weights(folder: Path) -> None:
    """Raises UsageError if the folder has no safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    found = f"only pickled weights ({', '.join(pickled)}), which can run code when read" if pickled else "no weights"
    raise UsageError(f"{folder} holds {found}: safetensors are needed. Convert them, or choose another revision.")


def chat_template_of(folder: Path, fallback: str | None) -> str:
    """The folder's chat template, or `fallback` if it has none. Raises UsageError if there is none or it fails."""
    from jinja2 import TemplateError

    template = _stored_template(folder)
    if template is None:
        template = fallback
    if template is None:
        raise UsageError(
            f"{folder} has no chat template (chat_template.jinja, or the key chat_template in tokenizer_config.json): "
            "without one the prompt would be guessed. Add the model's own template to the folder."
        )
    try:
        prompt = render_chat(template, conversation("question", "answer", "question"))
    # Templates for text only try to add strings to the list of contents.
    except (TemplateError, TypeError) as error:
        raise UsageError(f"the chat template of {folder} fails: {error}. Is it made for images?") from None
    if "'type': 'image'" in prompt:
        raise UsageError(f"the chat template of {folder} is made for text alone: it would render images as {prompt!r}.")
    return template


def _stored_template(folder: Path) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (file := folder / name).is_file():
            template = _read_object(file).get("chat_template")
            if isinstance(template, str) and template:
                return template
    return None


def protocol_of(folder: Path) -> str | None:
    """The path of the protocol file in the folder; None if there is none."""
    return str(folder / PROTOCOL_FILE) if (folder / PROTOCOL_FILE).is_file() else None
