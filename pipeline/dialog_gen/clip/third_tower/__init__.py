"""CLIP-3Modal: a third tower, for dialogues, beside a CLIP's frozen image and text towers (thesis, section 4.3).

A checkpoint is the base model's own folder, which loads in open_clip as the base model, with two files more:

    FOLDER/third_tower.json          the base model's name and hash of weights; beta, its share in a text's vector
    FOLDER/third_tower.safetensors   the third tower, by the names that `TextTower` has for its parameters
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat

THIRD_TOWER = "third_tower"
CONFIG_FILE, WEIGHTS_FILE = "third_tower.json", "third_tower.safetensors"


class ThirdTowerFormat(ClipFormat):
    """It can be tuned only as the plain CLIP that the folder holds too."""

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
