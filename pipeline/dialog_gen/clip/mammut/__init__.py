"""MaMMUT (arXiv 2303.16839): an image tower and one text decoder, which embeds texts in one pass and writes in another.

As a `Clip` it is used for search; as a generator it answers questions about images (`dialog-gen run --model`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat
from dialog_gen.clip.mammut.layout import CONFIG_FILE, MODEL_TYPE


class MammutFormat(ClipFormat):
    """Has all capabilities: embeds images and texts, generates texts, and can be tuned."""

    kind = "MaMMUT"
    can = frozenset({"embed images", "embed texts", "generate texts", "be tuned"})

    @override
    def recognises(self, folder: Path) -> bool:
        try:
            return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_type"] == MODEL_TYPE
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
