import math
from typing import Any

import open_clip
import pytest
import torch
from torch.nn.functional import normalize

from dialog_train.losses import contrastive_loss, siglip_loss


def features(count: int = 7, width: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [
        normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()
        for _ in range(2)
    ]


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def test_by_hand() -> None:
    images = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
    texts = torch.tensor([[0.8, 0.6], [0, 1]], dtype=torch.float64)
    # Logits 10 s - 3 of s = 0.8, 0 and 0.96, 0.8, and the two on the diagonal match.
    expected = sum(math.log1p(math.exp(x)) for x in (-5, -3, 6.6, -5)) / 2
    assert siglip_loss(images, texts, 10, -3).item() == pytest.approx(expected, rel=1e-13)


def test_at_its_start_it_is_the_positives_that_cost() -> None:
    images, texts = features(64, 512)
    assert siglip_loss(images, texts, 10, -10).item() == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("bias", [-10.0, 0.5])
def test_agrees_with_open_clip(bias: float) -> None:
    gradients: list[tuple[Any, ...]] = []
    for loss in (siglip_loss, open_clip.loss.SigLipLoss()):
        inputs = [*features(), scalar(12.0), scalar(bias)]
        value = loss(*inputs)
        gradients.append((value, *torch.autograd.grad(value, inputs)))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


def test_the_softmax_loss_agrees_with_open_clip() -> None:
    gradients: list[tuple[Any, ...]] = []
    for loss in (contrastive_loss, open_clip.ClipLoss()):
        inputs = [*features(), scalar(12.0)]
        value = loss(*inputs)
        gradients.append((value, *torch.autograd.grad(value, inputs)))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 4), (2, 5), (2, 4, 1)])
def test_shapes_that_do_not_match(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        siglip_loss(torch.zeros(2, 4), torch.zeros(shape), 10, -10)
