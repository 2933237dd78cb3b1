"""MaMMUT (arXiv 2303.16839): an image tower and one text decoder, which embeds texts in one pass and writes in another.

As a `Clip` it is used for search; as a generator it answers questions about images (`dialog-gen run --model`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat
from dialog_gen.clip.mammut.layout import CONFIG_FILE, MODEL_TYPE, PROTOCOL_FILE
from dialog_gen.core.files import read_regular
from dialog_gen.core.json_text import parse_json


class MammutFormat(ClipFormat):
    """Has all capabilities: embeds images and texts, generates texts, and can be tuned."""

    kind = "MaMMUT"
    can = frozenset({"embed images", "embed texts", "generate texts", "be tuned"})
    free_files = frozenset({PROTOCOL_FILE})

    @override
    def recognises(self, folder: Path) -> bool:
        try:
            return parse_json(read_regular(folder / CONFIG_FILE))["model_type"] == MODEL_TYPE
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
