"""Independent references for retrieval."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def ranks_by_sorting(scores: Tensor, relevant: Sequence[Sequence[int]]) -> list[int]:
    """The position of the first relevant candidate in the list of all, best first, equals by index."""
    order = [sorted(range(len(row)), key=lambda index: (-row[index], index)) for row in scores.double().tolist()]
    return [min(ranked.index(index) for index in some) for ranked, some in zip(order, relevant, strict=True)]


def clip_benchmark_recall(scores: Tensor, positive_pairs: Tensor, k: int) -> float:
    """CLIP_benchmark's figure: true positives in torch.topk, one-hot, over positives; a hit where that is above 0."""
    found = one_hot(torch.topk(scores, k, dim=1)[1], num_classes=scores.shape[1])
    true_positives = (found * positive_pairs[:, None]).sum(dim=(1, 2))
    return (true_positives / positive_pairs.sum(1) > 0).float().mean().item()
