"""CLIP-3Modal: a third tower, for dialogues, added to the frozen two towers of a CLIP (thesis, section 4.3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat
from dialog_gen.clip.third_tower.layout import CONFIG_FILE, THIRD_TOWER


class ThirdTowerFormat(ClipFormat):
    """Embeds images and texts. It cannot be tuned; the plain CLIP in the same folder can."""

    kind = "CLIP with a third tower"
    can = frozenset({"embed images", "embed texts"})

    @override
    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG_FILE).is_file()

    @override
    def load(self, folder: Path) -> Clip:
        from dialog_gen.clip.third_tower.checkpoint import load_third_tower

        return load_third_tower(folder)

    @override
    def save(self, clip: Any, folder: Path, changed: Mapping[str, Any]) -> None:
        from dialog_gen.clip.third_tower.checkpoint import save_third_tower

        save_third_tower(clip, folder, changed)


FORMATS.register(THIRD_TOWER)(ThirdTowerFormat())
