"""The contrastive loss of CLIP (arXiv 2103.00020), in one direction or both."""

from typing import get_args

import torch
from torch import Tensor

from dialog_train.losses.base import LOSSES, Direction, PairLoss
from dialog_train.losses.blocks import Statistics, over_rows, require_pairs
from dialog_train.losses.log_sums import log_sums
from dialog_train.processes import gather_columns


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, *, direction: Direction = "symmetric"
) -> Tensor:
    """Mean cross entropy of matching N texts with their N images; the other pairs are the negatives.

    `image_features` and `text_features` are the rows (N / processes, D) of this process, unit-norm; pair i matches.
    With S = logit_scale * texts @ images.T: `t2i` is the softmax over images (rows of S), `i2t` over texts (columns),
    `symmetric` the mean of both.

    Raises ValueError for shapes that do not match or an unknown direction.
    """
    require_pairs(image_features, text_features)
    require_direction(direction)
    images = gather_columns(image_features)

    def block(first: int, texts: Tensor) -> Statistics:
        return softmax_statistics(texts @ images.T, logit_scale, first, direction)

    return softmax_loss(over_rows(block, [text_features], len(images)), len(images), direction).to(images.dtype)


def require_direction(direction: str) -> None:
    """Raises ValueError for an unknown direction."""
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")


def softmax_statistics(
    similarities: Tensor, logit_scale: Tensor | float, first: int, direction: Direction
) -> Statistics:
    """What the cross entropies need of a block of similarities (B, M): see `blocks.Block` and `softmax_loss`."""
    scale = torch.as_tensor(logit_scale, dtype=similarities.dtype, device=similarities.device).reshape(())
    rows, columns, own = log_sums(similarities, scale, first, rows=direction != "i2t", columns=direction != "t2i")
    total = own.double().sum()
    return Statistics((rows.double().sum() - total, total), (columns,) if direction != "t2i" else ())


def softmax_loss(statistics: Statistics, count: int, direction: Direction) -> Tensor:
    """The loss in float64, from the merged statistics of `count` rows and as many columns."""
    rows, own = statistics.sums
    if direction == "t2i":
        return rows / count
    columns = statistics.log_sums[0].double().sum() - own
    return columns / count if direction == "i2t" else (rows + columns) / (2 * count)


LOSSES.register("clip")(
    PairLoss(
        description="CLIP: softmax over the batch in both directions (arXiv 2103.00020)",
        function=contrastive_loss,
        takes_own_rows=True,
    )
)
