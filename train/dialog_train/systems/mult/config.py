"""The recipe of MulT augmentation: a CLIP training with fusion settings and the weights of three losses."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dialog_train.config import Settings
from dialog_train.systems.clip.config import ClipRecipe

View = Literal["rows", "columns"]


class FusionSettings(Settings):
    """The options of `dialog_train.systems.mult.training.Fusion`, which documents them."""

    width: int = Field(default=256, ge=2)
    """Width of the embedded sequences."""
    layers: int = Field(default=4, ge=1)
    """Crossmodal blocks in each direction."""
    heads: int = Field(default=8, ge=1)
    patch_size: int = Field(ge=1)
    """Side of a square patch, in pixels."""
    views: tuple[View, ...] = Field(default=("rows",), min_length=1)
    """The axes along which an image's patches are flattened: one fused vector each."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width = {self.width} must be even and a multiple of heads = {self.heads}")
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views = {list(self.views)} names one twice")
        return self


class ThreeWayWeights(Settings):
    """The options of `dialog_train.losses.three_way.three_way_loss`, which documents them."""

    a: float = 1 / 3
    """Weight of the loss of images with texts."""
    b: float = 1 / 3
    """Weight of the loss of texts with fused vectors; that of fused vectors with images is 1 - a - b."""

    @model_validator(mode="after")
    def _all_positive(self) -> Self:
        if not (self.a > 0 and self.b > 0 and self.a + self.b < 1):
            raise ValueError(f"needs 0 < a, 0 < b and a + b < 1, got a = {self.a}, b = {self.b}")
        return self


class MultRecipe(ClipRecipe):
    """CLIP training with a third, fused vector of each image-text pair (thesis, section 4.2)."""

    takes_mini_batches: ClassVar[bool] = False
    fusion: FusionSettings
    weights: ThreeWayWeights = ThreeWayWeights()

    @model_validator(mode="after")
    def _trains_all_encoders(self) -> Self:
        if self.loss != "clip" or self.lock_image:
            raise ValueError('MulT trains all its encoders by the contrastive loss: needs loss = "clip", no lock_image')
        return self
