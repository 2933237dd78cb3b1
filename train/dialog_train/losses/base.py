"""The registry of image-text losses that a recipe can name, such as `loss = "siglip"`.

A file of `dialog_train.losses` defines such a loss and registers it:

    LOSSES.register("clip")(PairLoss(description="softmax over the batch", function=contrastive_loss))

Unlike the modules of other registries, these import torch at the top: the registry is read only when a recipe that
names a loss is checked, and a training follows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dialog_gen.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Direction = Literal["symmetric", "t2i", "i2t"]
"""The direction of a softmax: over images for each text ("t2i"), over texts for each image ("i2t"), or the mean of
both."""
MmdOver = Literal["scalars", "rows", "positives", "negatives", "apart"]
"""The samples of a distribution of similarities: see `draft_loss`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoss:
    """A loss of N images and N texts; pair i matches."""

    description: str
    """One line, for lists and help."""
    function: "Callable[..., Tensor]"
    """(image_features, text_features, logit_scale, **options) -> scalar, the loss of the batch of all processes. The
    features are (N, D) float32, unit-norm. The options are those in `options`, and `logit_bias` if the loss takes
    one."""
    takes_own_rows: bool = False
    """Whether the function takes the rows of its process, as `blocks.over_rows` does. Otherwise it takes the rows of
    all processes."""
    label: str = "contrastive_loss"
    """Name of the loss in logs; it ends in "loss"."""
    options: tuple[str, ...] = ()
    """Recipe keys that are passed to the function. If a recipe lacks such a key, the function's default applies."""
    init_logit_scale: float | None = None
    """Initial logarithm of the logit scale in a model without a logit bias. None: the model keeps its own scale."""
    init_logit_bias: float | None = None
    """Initial logit bias in a model that has none yet. None: the loss takes no bias."""

    def __call__(self, image_features: "Tensor", text_features: "Tensor", *scale: "Tensor", **options: Any) -> "Tensor":
        """The loss of the batch of all processes, from this process's rows."""
        from dialog_train.processes import gather_rows

        features = (image_features, text_features)
        if not self.takes_own_rows:
            features = (gather_rows(image_features), gather_rows(text_features))
        return self.function(*features, *scale, **options)

    def options_of(self, recipe: object) -> dict[str, Any]:
        """The recipe's values of `options`."""
        return {name: getattr(recipe, name) for name in self.options if hasattr(recipe, name)}


LOSSES: Registry[PairLoss] = Registry("loss", "dialog_train.losses", base=PairLoss)
