"""The sigmoid loss of SigLIP (arXiv 2303.15343)."""

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from dialog_train.losses.base import LOSSES, PairLoss
from dialog_train.losses.blocks import Statistics, over_rows, require_pairs, signed
from dialog_train.processes import gather_columns


def siglip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> Tensor:
    """Classifies each pair of N images and N texts as matching or not.

    L = -1/N sum_ij log sigmoid(z_ij (logit_scale x_i . y_j + logit_bias)),   z_ij = 1 for i = j, -1 otherwise

    `image_features` x and `text_features` y are the rows (N / processes, D) of this process, unit-norm; pair i matches.
    The sum over N^2 pairs is divided by N. There are N - 1 negatives per positive; an initial bias of about -10
    compensates for that.

    Raises ValueError for shapes that do not match.
    """
    require_pairs(image_features, text_features)
    images = gather_columns(image_features)

    def block(first: int, texts: Tensor) -> Statistics:
        logits = signed(logit_scale * texts @ images.T + logit_bias, first)
        return Statistics(sums=(logsigmoid(logits).sum(1).double().sum(),))

    return (-over_rows(block, [text_features], len(images)).sums[0] / len(images)).to(images.dtype)


# The initial bias predicts that no pair matches; the initial logit scale is low (section 3.2).
LOSSES.register("siglip")(
    PairLoss(
        description="SigLIP: a sigmoid for each pair, with a learned bias (arXiv 2303.15343)",
        function=siglip_loss,
        takes_own_rows=True,
        label="siglip_loss",
        init_logit_scale=math.log(10),
        init_logit_bias=-10.0,
    )
)
