"""The focal contrastive loss by hand and against open_clip's and torchvision's."""

import math
from typing import Any

import open_clip
import pytest
import torch
from torch.nn.functional import normalize
from torchvision.ops import sigmoid_focal_loss

from dialog_train.losses import focal_contrastive_loss

SCALE = 12.0


def features(count: int = 6, width: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [
        normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()
        for _ in range(2)
    ]


def of_torchvision(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, *, gamma: float) -> torch.Tensor:
    logits = scale * images @ texts.T
    matching = torch.eye(len(logits), dtype=logits.dtype)
    return sigmoid_focal_loss(logits, matching, alpha=-1, gamma=gamma, reduction="sum") / len(logits)


def of_open_clip(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, *, gamma: float) -> torch.Tensor:
    assert gamma == 0
    return open_clip.loss.SigLipLoss()(images, texts, scale, None)


@pytest.mark.parametrize("gamma", [0, 1, 2])
def test_by_hand(gamma: float) -> None:
    images = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
    texts = torch.tensor([[0.8, 0.6], [0, 1]], dtype=torch.float64)
    # Logits are ten times 0.8, 0, 0.96 and 0.8; the two that match are the first and the last.
    matching = [1 / (1 + math.exp(-x)) for x in (8, 8)]
    others = [1 / (1 + math.exp(x)) for x in (0, 9.6)]
    expected = -sum((1 - p) ** gamma * math.log(p) for p in matching + others) / 2
    assert focal_contrastive_loss(images, texts, 10, gamma=gamma).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("other", "gamma"), [(of_open_clip, 0), *((of_torchvision, gamma) for gamma in (0, 0.5, 1, 2, 5))]
)
def test_agrees_with_others(other: Any, gamma: float) -> None:
    results: list[tuple[Any, ...]] = []
    for loss in (focal_contrastive_loss, other):
        inputs = [*features(), torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)]
        value = loss(*inputs, gamma=gamma)
        results.append((value, *torch.autograd.grad(value, inputs)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradients_by_finite_differences(gamma: float) -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: focal_contrastive_loss(*inputs, gamma=gamma), [*features(3), scale])


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_no_pair_is_too_far_apart(gamma: float) -> None:
    """All wrong at CLIP's highest scale, in float32: what is certain has a gradient of 0, not one that is no number."""
    images = torch.eye(4).requires_grad_()
    right, wrong = (focal_contrastive_loss(images, sign * torch.eye(4), 100.0, gamma=gamma) for sign in (1, -1))
    assert wrong.item() == pytest.approx(100 + 3 * math.log(2) * 0.5**gamma)
    (gradient,) = torch.autograd.grad(right + wrong, images)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (2, 4, 1)])
def test_shapes_that_do_not_match(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        focal_contrastive_loss(torch.zeros(2, 4), torch.zeros(shape), 10)


def test_gamma_is_not_negative() -> None:
    with pytest.raises(ValueError, match=r"at least 0, got -0\.5"):
        focal_contrastive_loss(torch.zeros(2, 4), torch.zeros(2, 4), 10, gamma=-0.5)
