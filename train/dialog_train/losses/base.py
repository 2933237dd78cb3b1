"""Losses of images against their texts that a recipe can name, such as `loss = "siglip"`, and their registry.

A file of `dialog_train.losses` defines such a loss and registers it:

    LOSSES.register("clip")(PairLoss(description="softmax over the batch", function=contrastive_loss))

Unlike the modules of other registries these import torch at their top: the registry is asked for a loss only when a
recipe that names one is checked, and a training follows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dialog_gen.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["symmetric", "t2i", "i2t"]
"""What a softmax runs over: images for each text ("t2i"), texts for each image ("i2t"), or the mean of both."""
MmdOver = Literal["scalars", "rows", "positives", "negatives", "apart"]
"""What is one sample of a distribution of similarities: see `draft_loss`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """A loss of N images and N texts, of which pair i matches."""

    description: str
    """One line."""
    function: "Callable[..., Tensor]"
    """(image_features, text_features, logit_scale, **options) -> a scalar. The features are (N, D) in float32,
    unit-norm, of the batch of all processes. The options are those below, and `logit_bias` where there is one."""
    label: str = "contrastive_loss"
    """Its name in logs; it ends in "loss"."""
    options: tuple[str, ...] = ()
    """Keys of a recipe that the function takes too. A recipe without such a key leaves the function's own default."""
    init_logit_scale: float | None = None
    """Logarithm of the scale that a model without a logit bias starts from. None: the model keeps its own."""
    init_logit_bias: float | None = None
    """What the logit bias starts from, in a model that has none yet. None: the loss takes no bias."""

    def options_of(self, recipe: object) -> dict[str, Any]:
        """The values that a recipe has for `options`."""
        return {name: getattr(recipe, name) for name in self.options if hasattr(recipe, name)}


LOSSES: Registry[PairLoss] = Registry("loss", "dialog_train.losses", base=PairLoss)
