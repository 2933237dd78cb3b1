"""open_clip's checkpoints, which are plain CLIPs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat
from dialog_gen.clip.open_clip.layout import CONFIG_FILE, OPEN_CLIP, WEIGHTS_FILE


class OpenClipFormat(ClipFormat):
    """A plain CLIP: an image tower and a text tower, each of any kind that open_clip has."""

    kind = "plain CLIP"
    can = frozenset({"embed images", "embed texts", "be tuned"})

    @override
    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()

    @override
    def check(self, folder: Path) -> None:
        from dialog_gen.clip.open_clip.checkpoint import read_config

        read_config(folder)

    @override
    def load(self, folder: Path) -> Clip:
        from dialog_gen.clip.open_clip.checkpoint import load_folder

        return load_folder(folder)

    @override
    def save(self, clip: Clip, folder: Path, changed: Mapping[str, Any]) -> None:
        from dialog_gen.clip.open_clip.checkpoint import save_folder

        save_folder(clip, folder, changed)


FORMATS.register(OPEN_CLIP)(OpenClipFormat())
