import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dialog_eval.metrics.classification import ensemble_class_vectors, mean_per_class_accuracy, top_k_accuracy

SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.0],  # best first: 0, 1, 2
        [0.8, 0.5, 0.6],  # 0, 2, 1
        [0.2, 0.7, 0.1],  # 1, 0, 2
        [0.5, 0.5, 0.5],  # 0, 1, 2
        [0.1, 0.2, 0.3],  # 2, 1, 0
    ]
)
LABELS = torch.tensor([0, 1, 1, 1, 0])


def test_top_k_by_hand() -> None:
    # The labels stand in places 1, 3, 1, 2, 3.
    assert top_k_accuracy(SCORES, LABELS, [1, 2, 3]) == {1: 0.4, 2: 0.6, 3: 1}
    assert top_k_accuracy(SCORES, LABELS) == {1: 0.4, 5: 1}


def test_mean_per_class_by_hand() -> None:
    # Class 0: 1 of 2. Class 1: 1 of 3. Class 2 has no samples.
    assert mean_per_class_accuracy(SCORES, LABELS) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert mean_per_class_accuracy(SCORES, torch.tensor([0, 0, 1, 0, 2])) == 1


def test_balanced_classes_agree_with_top_1() -> None:
    rng = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(600, 20, generator=rng), torch.arange(600) % 20
    top_1 = (scores.argmax(1) == labels).double().mean().item()
    assert mean_per_class_accuracy(scores, labels) == pytest.approx(top_1, abs=1e-12)
    assert top_k_accuracy(scores, labels, [1]) == {1: pytest.approx(top_1, abs=1e-12)}


def test_ensemble_by_hand() -> None:
    # Directions (1, 0) and (0, 1), whatever the lengths: the mean points to (1, 1).
    vectors = torch.tensor([[[5.0, 0.0], [0.0, 0.1]], [[0.0, -3.0], [0.0, -1.0]]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [0.0, -1.0]])
    torch.testing.assert_close(ensemble_class_vectors(vectors), expected)
    torch.testing.assert_close(ensemble_class_vectors([vectors[0], vectors[1, :1]]), expected)


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_ensemble_types(given: torch.dtype, returned: torch.dtype) -> None:
    vectors = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)).to(given)
    means = (vectors.double() / vectors.double().norm(dim=2, keepdim=True)).mean(1)
    ensembled = ensemble_class_vectors(vectors)
    assert ensembled.dtype == returned
    torch.testing.assert_close(ensembled.double(), means / means.norm(dim=1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([], "no classes"),
        ([torch.ones(2, 3), torch.ones(0, 3)], r"class 1: .* \(0, 3\)"),
        ([torch.ones(3)], r"class 0: .* \(3,\)"),
        (torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]), "class 1"),
        (torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), "class 0"),
        (torch.tensor([[[1.0, torch.nan]]]), "class 0"),
        (torch.tensor([[[1.0, torch.inf]]]), "class 0"),
    ],
)
def test_vectors_without_direction(vectors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ensemble_class_vectors(vectors)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), "5 queries"),
        (torch.tensor([0, 1, 2, 3, 0]), "query 3"),
        (torch.tensor([0, 1, 2, 0, -1]), "query 4"),
        (torch.ones(5, 3, dtype=torch.bool), r"labels .* \(5, 3\)"),
        (torch.ones(5), "float32"),
    ],
)
def test_wrong_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k_accuracy(SCORES, labels)
    with pytest.raises(ValueError, match=message):
        mean_per_class_accuracy(SCORES, labels)


def test_no_samples() -> None:
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="nothing to average"):
        top_k_accuracy(*nothing)
    with pytest.raises(ValueError, match="nothing to average"):
        mean_per_class_accuracy(*nothing)
