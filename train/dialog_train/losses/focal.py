"""The focal contrastive loss of RO-ViT and MaMMUT (arXiv 2305.07011, 2303.16839)."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from dialog_train.losses.base import LOSSES, PairLoss
from dialog_train.losses.blocks import Statistics, over_rows, require_pairs, signed
from dialog_train.processes import gather_columns


def focal_contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float, *, gamma: float = 2.0
) -> Tensor:
    """Classifies each pair of N images and N texts as matching or not; easy pairs get a lower weight.

    L = -1/N sum_ij (1 - p_ij)^gamma log p_ij
    p_ij = sigmoid(logit_scale x_i . y_j) for i = j, and 1 - sigmoid(logit_scale x_i . y_j) otherwise

    `image_features` x and `text_features` y are the rows (N / processes, D) of this process, unit-norm; pair i matches.
    With gamma = 0 it is SigLIP's loss without a bias. The papers average two directions, which have the same terms.

    Raises ValueError for shapes that do not match or a negative gamma.
    """
    require_pairs(image_features, text_features)
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    images = gather_columns(image_features)

    def block(first: int, texts: Tensor) -> Statistics:
        logits = signed(logit_scale * texts @ images.T, first)
        # 1 - p, computed without cancellation.
        weights = (gamma * logsigmoid(-logits)).exp()
        return Statistics(sums=((weights * logsigmoid(logits)).sum(1).double().sum(),))

    return (-over_rows(block, [text_features], len(images)).sums[0] / len(images)).to(images.dtype)


LOSSES.register("focal")(
    PairLoss(
        description="MaMMUT: a sigmoid for each pair, in which well told pairs count less (arXiv 2303.16839)",
        function=focal_contrastive_loss,
        takes_own_rows=True,
        options=("gamma",),
    )
)
