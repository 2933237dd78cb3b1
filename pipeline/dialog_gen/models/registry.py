"""Generators by name, and what must be true of a model folder before an engine is started on it."""

import hashlib
import io
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from jinja2 import TemplateError

from dialog_gen.clip.mammut.layout import MODEL_TYPE as MAMMUT
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, render_chat

PROTOCOL_FILE = "protocol.toml"
"""In a model folder: the protocol used when none is named."""
_FINGERPRINT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A generator known by name."""

    source: str
    """Hugging Face id, or the name of a checkpoint shipped with the package."""
    protocol: str
    """The protocol used when none is named."""
    description: str
    dtype: str = "auto"
    shipped: bool = False
    max_model_len: int | None = None


MODELS: dict[str, ModelEntry] = {
    "llava-1.5-7b": ModelEntry(
        source="llava-hf/llava-1.5-7b-hf", protocol="llava-3qa", description="LLaVA-1.5, Vicuna-7B", max_model_len=2048
    ),
    "llava-1.5-13b": ModelEntry(
        source="llava-hf/llava-1.5-13b-hf",
        protocol="llava-3qa",
        description="LLaVA-1.5, Vicuna-13B",
        max_model_len=2048,
    ),
    "blip2-opt-2.7b": ModelEntry(
        source="Salesforce/blip2-opt-2.7b", protocol="blip2-two-turn", description="BLIP-2, OPT-2.7B", dtype="float16"
    ),
    "blip2-opt-6.7b": ModelEntry(
        source="Salesforce/blip2-opt-6.7b", protocol="blip2-two-turn", description="BLIP-2, OPT-6.7B", dtype="float16"
    ),
    "blip2-flan-t5-xl": ModelEntry(
        source="Salesforce/blip2-flan-t5-xl",
        protocol="blip2-two-turn",
        description="BLIP-2, Flan-T5-XL (transformers engine only)",
        dtype="bfloat16",
    ),
    "shapes-llava": ModelEntry(
        source="shapes-llava",
        protocol="llava-3qa",
        description="LLaVA-1.5's architecture at 2 M parameters for the embedded world; ships with the package",
        dtype="float32",
        shipped=True,
        max_model_len=512,
    ),
    "shapes-blip2": ModelEntry(
        source="shapes-blip2",
        protocol="blip2-two-turn",
        description="BLIP-2-OPT's architecture at 2 M parameters for the embedded world; ships with the package",
        dtype="float32",
        shipped=True,
        max_model_len=512,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorModel:
    """A checked model folder, ready for an engine."""

    name: str
    folder: Path
    revision: str
    """Commit on the Hub, or the fingerprint of a folder that has none."""
    chat_template: str
    default_protocol: str
    dtype: str
    max_model_len: int | None
    config: dict[str, Any]
    shipped: bool = False

    @property
    def image_token(self) -> str:
        """The text that stands for an image in this model's prompts."""
        return "<image>"

    @property
    def served_by_vllm(self) -> bool:
        """Whether vLLM has this architecture: neither MaMMUT nor BLIP-2 with a T5 decoder."""
        return not self.is_mammut and self.config.get("text_config", {}).get("model_type") != "t5"

    @property
    def is_mammut(self) -> bool:
        """Whether the architecture is this package's own, which transformers does not know by itself."""
        return self.config.get("model_type") == MAMMUT


def resolve_model(name: str, *, revision: str | None = None, download: bool = True) -> GeneratorModel:
    """A generator by registry name, Hugging Face id or local folder.

    With `download=False` only the small files (configuration, tokenizer, template) are fetched. Raises UsageError for
    an unknown name, a folder that is no model, weights that are not safetensors, a missing or failing chat template,
    or a revision of what has none.
    """
    entry = MODELS.get(name)
    local = entry is None and Path(name).is_dir()
    if revision is not None and (local or (entry and entry.shipped)):
        raise UsageError(f"model {name!r} is a folder and has no revision {revision!r}: revisions are the Hub's.")
    if entry is not None and entry.shipped:
        folder = Path(str(files("dialog_gen.shapes"))) / "checkpoints" / entry.source
    elif local:
        folder = Path(name).resolve()
    elif entry is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise _unknown(name)
    else:
        folder, revision = _fetch(entry.source if entry else name, revision, weights=download)
    config = _read_config(folder)
    if download or local:
        _check_weights(folder)
    return GeneratorModel(
        name=folder.name if local else name,
        folder=folder,
        revision=revision or _fingerprint(folder),
        chat_template=_chat_template(folder, config),
        default_protocol=entry.protocol if entry else _protocol_of(folder, config),
        dtype=entry.dtype if entry else "auto",
        max_model_len=entry.max_model_len if entry else _context_of(config),
        config=config,
        shipped=bool(entry and entry.shipped),
    )


def _unknown(name: str) -> UsageError:
    hint = did_you_mean(name, MODELS)
    return UsageError(f"unknown model {name!r}: {hint}; or give a Hugging Face id (user/name) or an existing folder.")


def _fingerprint(folder: Path) -> str:
    """What a folder without a commit is told by: its small files whole, both ends and the size of its weights."""
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


def _fetch(hub_id: str, revision: str | None, *, weights: bool) -> tuple[Path, str]:
    """The snapshot's folder and its commit. Pickled weights and code are never fetched."""
    patterns = ["*.json", "*.jinja", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError:
        hint = did_you_mean(hub_id, MODELS)
        raise UsageError(f"no model {hub_id!r} on the Hub, or no access to it: {hint}.") from None
    except RevisionNotFoundError:
        raise UsageError(f"model {hub_id!r} has no revision {revision!r}.") from None
    except HFValidationError:
        raise _unknown(hub_id) from None
    # The Hub's client lets through what its HTTP library raises, and which library that is changes.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"model {hub_id!r} could not be fetched and is not in the local cache ({type(error).__name__}: {reason}). "
            "Check the network, or give the path of a local folder."
        ) from error
    return folder, folder.name


def _read_config(folder: Path) -> dict[str, Any]:
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


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    found = f"only pickled weights ({', '.join(pickled)}), which can run code when read" if pickled else "no weights"
    raise UsageError(f"{folder} holds {found}: safetensors are needed. Convert them, or choose another revision.")


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    """The folder's chat template; BLIP-2, published without one, gets the paper's prompt form."""
    template = _stored_template(folder)
    if template is None and config.get("model_type") == "blip-2":
        return BLIP2_CHAT_TEMPLATE
    if template is None:
        raise UsageError(
            f"{folder} has no chat template (chat_template.jinja, or the key chat_template in tokenizer_config.json): "
            "without one the prompt would be guessed. Add the model's own template to the folder."
        )
    try:
        prompt = render_chat(template, ["question", "answer", "question"])
    # Templates made for text alone add strings to the list of contents.
    except (TemplateError, TypeError) as error:
        raise UsageError(f"the chat template of {folder} fails: {error}. Is it made for images?") from None
    if "'type': 'image'" in prompt:
        raise UsageError(f"the chat template of {folder} is made for text alone: it would print images as {prompt!r}.")
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


def _protocol_of(folder: Path, config: dict[str, Any]) -> str:
    if (folder / PROTOCOL_FILE).is_file():
        return str(folder / PROTOCOL_FILE)
    return "blip2-two-turn" if config.get("model_type") in ("blip-2", MAMMUT) else "llava-3qa"


def _context_of(config: dict[str, Any]) -> int | None:
    """Known of MaMMUT; engines find out that of others."""
    return config.get("max_position_embeddings") if config.get("model_type") == MAMMUT else None
