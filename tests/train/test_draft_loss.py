import math
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from dialog_train.losses import contrastive_loss, draft_loss

SCALE = 14.3


def features(n: int = 6, d: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(normalize(torch.randn(n, d, dtype=torch.float64, generator=generator), dim=-1) for _ in range(3))  # type: ignore[return-value]


def cosines(texts: torch.Tensor, images: torch.Tensor) -> list[list[float]]:
    return [[sum(p * q for p, q in zip(t, i, strict=True)) for i in images.tolist()] for t in texts.tolist()]


def by_hand_t2i(texts: torch.Tensor, images: torch.Tensor) -> float:
    rows = [[SCALE * c for c in row] for row in cosines(texts, images)]
    return sum(math.log(sum(map(math.exp, row))) - row[k] for k, row in enumerate(rows)) / len(rows)


def by_hand_mmd2(x: list[float], y: list[float], sigma: float) -> float:
    def mean(a: list[float], b: list[float]) -> float:
        return sum(math.exp(-((p - q) ** 2) / (2 * sigma**2)) for p, q in product(a, b)) / len(a) / len(b)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def test_contrastive_against_hand_and_open_clip() -> None:
    from open_clip.loss import ClipLoss

    images, captions, _ = features()
    t2i, i2t = by_hand_t2i(captions, images), by_hand_t2i(images, captions)
    assert contrastive_loss(images, captions, SCALE, direction="t2i").item() == pytest.approx(t2i, abs=1e-12)
    assert contrastive_loss(images, captions, SCALE, direction="i2t").item() == pytest.approx(i2t, abs=1e-12)
    both = contrastive_loss(images, captions, SCALE).item()
    assert both == pytest.approx((t2i + i2t) / 2, abs=1e-12)
    assert both == pytest.approx(ClipLoss()(images, captions, SCALE).item(), abs=1e-12)


def test_parts_are_weighted_and_sum_to_the_loss() -> None:
    images, captions, dialogues = features()
    parts = draft_loss(images, captions, dialogues, SCALE, a=0.3, direction="t2i", mmd_weight=2.5, mmd_sigma=0.15)
    assert list(parts) == ["image_dialogue_loss", "image_caption_loss", "mmd_loss"]
    flat = [[c for row in cosines(texts, images) for c in row] for texts in (captions, dialogues)]
    expected = (
        0.3 * by_hand_t2i(dialogues, images),
        0.7 * by_hand_t2i(captions, images),
        2.5 * by_hand_mmd2(flat[0], flat[1], 0.15),
    )
    for part, wanted in zip(parts.values(), expected, strict=True):
        assert part.item() == pytest.approx(wanted, abs=1e-9)


def similarity_samples(over: str) -> tuple[list[float], list[float]]:
    images, captions, dialogues = features()
    chosen = []
    for texts in (captions, dialogues):
        rows = cosines(texts, images)
        keep = {"positives": lambda i, j: i == j, "negatives": lambda i, j: i != j}[over]
        chosen.append([c for i, row in enumerate(rows) for j, c in enumerate(row) if keep(i, j)])
    return chosen[0], chosen[1]


@pytest.mark.parametrize("over", ["positives", "negatives"])
def test_mmd_over_positives_and_negatives(over: str) -> None:
    x, y = similarity_samples(over)
    loss = draft_loss(*features(), SCALE, mmd_over=over)["mmd_loss"].item()  # type: ignore[arg-type]
    assert loss == pytest.approx(by_hand_mmd2(x, y, 0.2), abs=1e-9)


def test_other_mmd_options() -> None:
    def mmd(**options: Any) -> float:
        return draft_loss(*features(), SCALE, **options)["mmd_loss"].item()

    assert mmd(mmd_over="apart") == pytest.approx(mmd(mmd_over="positives") + mmd(mmd_over="negatives"), abs=1e-12)
    assert mmd(mmd_sigma=[0.1, 0.5]) == pytest.approx((mmd(mmd_sigma=0.1) + mmd(mmd_sigma=0.5)) / 2, abs=1e-12)
    assert mmd(mmd_root=True) == pytest.approx(math.sqrt(mmd() + 1e-8), abs=1e-12)
    images, captions, dialogues = features()
    rows = [torch.tensor(cosines(texts, images)) for texts in (captions, dialogues)]
    gaps = {(p, q): torch.cdist(rows[p], rows[q]).square() for p, q in product((0, 1), (0, 1))}
    k = {pair: torch.exp(-gap / (2 * 0.2**2)).mean().item() for pair, gap in gaps.items()}
    assert mmd(mmd_over="rows") == pytest.approx(k[0, 0] + k[1, 1] - 2 * k[0, 1], abs=1e-6)
    assert 0 < mmd(mmd_sigma="median") < 2
    assert 0.01 < mmd(mmd_over="rows", mmd_sigma="median") < 2
    assert mmd(mmd_weight=0) == 0


def test_stop_gradient_on_captions_and_none_into_equal_distributions() -> None:
    images, captions, dialogues = features()
    captions.requires_grad_()
    dialogues.requires_grad_()
    loss = draft_loss(images, captions, dialogues, SCALE, mmd_detach_captions=True)["mmd_loss"]
    caption_gradient, dialogue_gradient = torch.autograd.grad(loss, (captions, dialogues), allow_unused=True)
    assert caption_gradient is None
    assert dialogue_gradient.norm() > 0
    same = draft_loss(images, captions, captions, SCALE, mmd_root=True)["mmd_loss"]
    assert torch.isfinite(torch.autograd.grad(same, captions)[0]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"a": 1.2}, "1.2"), ({"a": -0.1}, "-0.1"), ({"direction": "t2t"}, "t2t"), ({"mmd_over": "all"}, "all")],
)
def test_refuses(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draft_loss(*features(), SCALE, **options)


def test_refuses_other_shapes() -> None:
    images, captions, dialogues = features()
    with pytest.raises(ValueError, match=r"\(6, 5\) and \(5, 5\)"):
        draft_loss(images, captions[:5], dialogues, SCALE)
