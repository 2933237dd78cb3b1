"""The recipe of CLIP-3Modal."""

from pydantic import Field

from dialog_train.config import DialogueUse, LongTextRecipe, Settings
from dialog_train.losses.base import Direction


class ThirdTowerLossSettings(Settings):
    """The options of `dialog_train.losses.third_tower_loss`, which documents them."""

    a: float = Field(default=0.65, ge=0, le=1)
    """Weight of the images; captions weigh 1 - a."""
    direction: Direction = "symmetric"
    """Softmax over dialogues ("i2t"), over images and captions ("t2i", the thesis' equation), or the mean of both
    ("symmetric")."""


class ThirdTowerRecipe(LongTextRecipe):
    """CLIP-3Modal: a third tower for dialogues, next to frozen image and text towers."""

    loss: ThirdTowerLossSettings = ThirdTowerLossSettings()
    dialogues: DialogueUse = "concatenate"
    beta: float = Field(default=0.9, ge=0, le=1)
    """Weight (0 to 1) of the text tower in a text's vector; evaluation uses it by default."""
