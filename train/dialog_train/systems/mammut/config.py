"""The recipe of MaMMUT."""

from typing import Self

from pydantic import Field, model_validator

from dialog_train.config import DialogueUse, LossName, TowersRecipe
from dialog_train.losses.base import LOSSES


class MammutRecipe(TowersRecipe):
    """MaMMUT: an image tower and one text decoder; a contrastive and a captioning loss (arXiv 2303.16839)."""

    loss: LossName = "focal"
    """The contrastive loss, such as "focal" (a focal loss of each pair) or "clip" (a softmax over the batch)."""
    gamma: float = Field(default=2.0, ge=0)
    """Exponent of the focal loss: the higher it is, the lower is the weight of pairs that are classified well."""
    contrastive_weight: float = Field(default=1.0, ge=0)
    captioning_weight: float = Field(default=1.0, ge=0)
    cross_attention_every: int = Field(default=2, ge=1)
    """Every `cross_attention_every`-th layer of the decoder attends to the image."""
    cropped_positions: bool = False
    """Replace the positional embedding by that of a random region, resized (arXiv 2305.07011, section 3.2)."""
    dialogues: DialogueUse = "rotate"
    """How the captioning loss uses dialogues, if the data is a dialogues dataset. "rotate": one question-answer pair
    per image and epoch, another one in the next epoch; "concatenate": all pairs joined."""

    @model_validator(mode="after")
    def _has_an_objective(self) -> Self:
        if not self.contrastive_weight and not self.captioning_weight:
            raise ValueError("contrastive_weight and captioning_weight are both 0: nothing would be learned")
        if "loss" in self.model_fields_set and LOSSES.get(self.loss).init_logit_bias is not None:
            raise ValueError(f"loss = {self.loss!r} needs a logit bias, which MaMMUT does not have")
        if self.optim.partial:
            raise ValueError(f"{self.optim.partial} is for text towers: MaMMUT trains all of its model")
        return self
