"""The recipe of contrastive training."""

from typing import ClassVar

from dialog_train.config import LossName, TowersRecipe


class ClipRecipe(TowersRecipe):
    """Contrastive training of an image tower and a text tower on images and captions."""

    takes_mini_batches: ClassVar[bool] = True
    loss: LossName = "clip"
    """The loss, such as "clip" (a softmax over the batch in both directions, arXiv 2103.00020) or "siglip" (a sigmoid
    for each pair, arXiv 2303.15343)."""
    lock_image: bool = False
    """Train only the text tower, with a frozen image tower (LiT, arXiv 2111.07991)."""
