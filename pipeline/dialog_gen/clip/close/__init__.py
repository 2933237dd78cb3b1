"""CLOSE (arXiv 2211.09778): a text decoder that reads the vectors of a frozen CLIP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat
from dialog_gen.clip.close.layout import CLOSE, CLOSE_FILE


class CloseFormat(ClipFormat):
    """Only generates texts. The CLIP whose vectors it reads is not in the folder; use that CLIP for search."""

    kind = "CLOSE decoder"
    can = frozenset({"generate texts"})

    @override
    def recognises(self, folder: Path) -> bool:
        return (folder / CLOSE_FILE).is_file()

    @override
    def load(self, folder: Path) -> Clip:
        from dialog_gen.clip.close.checkpoint import load_close

        return load_close(folder)

    @override
    def save(self, clip: Any, folder: Path, changed: Mapping[str, Any]) -> None:
        from dialog_gen.clip.close.checkpoint import save_close

        save_close(clip, folder, changed)


FORMATS.register(CLOSE)(CloseFormat())
