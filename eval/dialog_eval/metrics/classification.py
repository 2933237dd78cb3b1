"""Metrics of zero-shot classification with prompt templates (CLIP, arXiv 2103.00020, section 3.1)."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from dialog_eval.metrics.retrieval import hit_ranks, recall_at_k


def ensemble_class_vectors(template_vectors: Tensor | Sequence[Tensor]) -> Tensor:
    """One unit-norm vector per class: the vectors of its texts are normalised, averaged, and normalised again.

    `template_vectors`: (classes, templates, dim), or one (templates, dim) tensor per class if their numbers differ.
    Returns (classes, dim), in float32 or float64.

    Raises ValueError for no classes, for a class without texts, and for a vector or a mean that is zero, NaN or
    infinite.
    """
    if len(template_vectors) == 0:
        raise ValueError("no classes: template_vectors is empty")
    classes: list[Tensor] = []
    for number, vectors in enumerate(template_vectors):
        if vectors.ndim != 2 or len(vectors) == 0:
            raise ValueError(f"class {number}: expected (templates, dim), got a tensor of shape {tuple(vectors.shape)}")
        wide = vectors if vectors.dtype == torch.float64 else vectors.float()
        classes.append(_unit(_unit(wide, number).mean(0), number))
    return torch.stack(classes)


def top_k_accuracy(scores: Tensor, labels: Tensor, ks: Iterable[int] = (1, 5)) -> dict[int, float]:
    """For each k the share (0 to 1) of samples whose label is among the k best classes.

    `scores`: (samples, classes), higher is better; `labels`: LongTensor (samples,). Classes with equal scores are
    ranked by index.

    Raises ValueError for wrong shapes or labels, NaN scores, no samples, and a k below 1.
    """
    _check_labels(labels)
    return recall_at_k(scores, labels, ks)


def mean_per_class_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy (0 to 1) of each class that has samples, averaged over these classes.

    `scores`: (samples, classes), `labels`: LongTensor (samples,). Raises ValueError as `top_k_accuracy` does.
    """
    _check_labels(labels)
    hits = hit_ranks(scores, labels) == 0
    if hits.size == 0:
        raise ValueError("accuracy of no samples: there is nothing to average")
    _, class_of, samples = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(class_of, weights=hits) / samples))


def _check_labels(labels: Tensor) -> None:
    if labels.ndim != 1:
        raise ValueError(f"labels must be (samples,), got a tensor of shape {tuple(labels.shape)}")


def _unit(vectors: Tensor, number: int) -> Tensor:
    """Normalises the vectors (..., dim) of class `number`."""
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise ValueError(f"class {number}: a vector or the mean of its vectors is zero or not finite")
    return F.normalize(vectors, dim=-1)
