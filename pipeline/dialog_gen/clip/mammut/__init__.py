"""MaMMUT (arXiv 2303.16839): an image tower and one text decoder, which embeds texts in one pass and writes in another.

A checkpoint is a model folder as Hugging Face lays them out. As a `Clip` it is searched with, and as a generator it
answers questions about images (`dialog-gen run --model`):

    FOLDER/config.json        MammutConfig
    FOLDER/generation_config.json, chat_template.jinja
    FOLDER/protocol.toml      the questions that a run asks by default; only for a model that was trained on dialogues
    FOLDER/tokenizer.json ... where the tokenizer is one of Hugging Face's
    FOLDER/model.safetensors  written last
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat

MODEL_TYPE = "mammut"
"""The `model_type` in config.json, and the name of the format."""
PROTOCOL_FILE = "protocol.toml"
"""In a model folder: the questions that a run asks where no protocol is named."""


class MammutFormat(ClipFormat):
    """It does all that there is to do."""

    kind = "MaMMUT"
    can = frozenset({"embed images", "embed texts", "generate texts", "be tuned"})

    @override
    def recognises(self, folder: Path) -> bool:
        try:
            return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @override
    def load(self, folder: Path) -> Clip:
        from dialog_gen.clip.mammut.checkpoint import load_mammut

        return load_mammut(folder)

    @override
    def save(self, clip: Any, folder: Path, changed: Mapping[str, Any]) -> None:
        from dialog_gen.clip.mammut.checkpoint import save_mammut

        save_mammut(clip, folder, changed)


FORMATS.register(MODEL_TYPE)(MammutFormat())
