"""Losses of all pairs in their plain form, over whole matrices, and the package's own, by name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from dialog_train.losses import blocks
from dialog_train.losses.base import LOSSES
from dialog_train.losses.distillation import similarity_distillation
from dialog_train.losses.draft import draft_loss
from dialog_train.losses.foils import foil_loss
from dialog_train.losses.info_nce import info_nce
from dialog_train.losses.third_tower import third_tower_loss
from dialog_train.losses.three_way import three_way_loss
from dialog_train.losses.truths import truth_loss

COUNT, WIDTH = 12, 7
Loss = Callable[[Sequence[Tensor]], Tensor]
"""Four matrices of features (N, D), scale and bias -> the loss."""


def inputs(count: int = COUNT) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) for _ in range(4)]
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (9.0, -3.0)]
    return [x.requires_grad_() for x in [*(normalize(x, dim=-1) for x in features), *scalars]]


def softmax(images: Tensor, texts: Tensor, scale: Any, direction: str = "symmetric") -> Tensor:
    logits, own = scale * texts @ images.T, torch.arange(len(texts))
    t2i, i2t = cross_entropy(logits, own), cross_entropy(logits.T, own)
    return {"t2i": t2i, "i2t": i2t, "symmetric": (t2i + i2t) / 2}[direction]


def sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Any = 0.0, gamma: float = 0.0) -> Tensor:
    logits = (scale * texts @ images.T + bias) * (2 * torch.eye(len(texts)) - 1)
    return -((1 - logits.sigmoid()) ** gamma * logsigmoid(logits)).sum() / len(texts)


def mmd2(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Over all pairs of vectors (n, D), (m, D)."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a[:, None] - b[None]).square().sum(-1) / (2 * sigma**2)).mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def samples(of: Tensor, over: str) -> list[Tensor]:
    own = torch.eye(len(of), dtype=torch.bool)
    kept = {"positives": [own], "negatives": [~own], "apart": [own, ~own], "scalars": [own | ~own]}
    return [of] if over == "rows" else [of[mask][:, None] for mask in kept[over]]


def left_out(rows: slice) -> Tensor:
    mask = torch.zeros(COUNT, 2 * COUNT, dtype=torch.bool)
    mask[0, 3] = mask[5, 2] = mask[7, COUNT + 1] = True
    mask[2] = True  # all but its own target
    mask[2, 2] = False
    return mask[rows]


def plain_info_nce(x: Sequence[Tensor]) -> Tensor:
    logits = (x[0] @ torch.cat([x[1], x[2]]).T / 0.1).masked_fill(left_out(slice(COUNT)), -torch.inf)
    own = torch.arange(COUNT)
    return cross_entropy(logits, own) + cross_entropy(logits[:, :COUNT].T, own)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def plain_draft(x: Sequence[Tensor], over: str, sigmas: Sequence[float], root: bool) -> Tensor:
    images, captions, dialogues, _, scale, _ = x
    pairs = [samples(texts @ images.T, over) for texts in (captions, dialogues)]
    value = torch.stack([mmd2(p, q, s) for p, q in zip(*pairs, strict=True) for s in sigmas]).sum() / len(sigmas)
    value = (value + 1e-8).sqrt() if root else value
    return 0.3 * softmax(images, dialogues, scale) + 0.7 * softmax(images, captions, scale) + 2 * value


def draft(x: Sequence[Tensor], over: Any, sigmas: Any, root: bool) -> Tensor:
    return total(
        draft_loss(x[0], x[1], x[2], x[4], a=0.3, mmd_weight=2, mmd_sigma=sigmas, mmd_over=over, mmd_root=root)
    )


def plain_three(x: Sequence[Tensor]) -> Tensor:
    fused = (softmax(x[1], x[2], x[4]) + softmax(x[1], x[3], x[4])) / 2
    others = (softmax(x[0], x[2], x[4]) + softmax(x[0], x[3], x[4])) / 2
    return 0.5 * softmax(x[0], x[1], x[4]) + 0.2 * fused + 0.3 * others


def candidates(x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Three candidates of each image, and which of them exist: not all foils, and for some images none."""
    ones = torch.ones(len(x[0]), dtype=torch.bool)
    return torch.stack(list(x[1:4]), 1), torch.stack([ones, x[1][:, 0] > 0, x[2][:, 0] > 0], 1)


def plain_foils(x: Sequence[Tensor]) -> Tensor:
    texts, there = candidates(x)
    losses = list[Tensor]()
    for image, own, some in zip(x[0], texts, there.tolist(), strict=True):
        scores = [(x[4] * (image * text).sum()).exp() for text, is_there in zip(own, some, strict=True) if is_there]
        if len(scores) > 1:
            losses.append(-(scores[0] / torch.stack(scores).sum()).log())
    return torch.stack(losses).mean()


def foils(x: Sequence[Tensor]) -> Tensor:
    texts, there = candidates(x)
    return foil_loss(x[0], texts, x[4], there)


def plain_truths(x: Sequence[Tensor]) -> Tensor:
    """The first text of each image is true, the last false, and the second one or neither."""
    texts, there = candidates(x)
    scores = [[x[4] * (image * text).sum() for text in own] for image, own in zip(x[0], texts, strict=True)]
    true = [own[0] for own in scores] + [own[1] for own, is_there in zip(scores, there, strict=True) if is_there[1]]
    return torch.stack([(1 + (own[2] - one).exp()).log() for one in true for own in scores]).mean()


def truths(x: Sequence[Tensor]) -> Tensor:
    texts, there = candidates(x)
    false = torch.zeros_like(there)
    false[:, 2] = True
    return truth_loss(x[0], texts, x[4], there & ~false, false)


def plain_distillation(x: Sequence[Tensor]) -> Tensor:
    images, scale = x[0].detach(), x[4].detach()
    # Twice as many texts as images.
    wanted, found = (scale * torch.cat(of) @ images.T for of in ([x[2].detach(), x[1].detach()], [x[1], x[3]]))
    divergences = list[Tensor]()
    for dim in (0, 1):
        p, q = wanted.softmax(dim), found.softmax(dim)
        divergences.append((p * (p.log() - q.log())).sum(dim).mean())
    return (divergences[0] + divergences[1]) / 2


def distillation(x: Sequence[Tensor]) -> Tensor:
    return similarity_distillation(x[0], torch.cat([x[1], x[3]]), torch.cat([x[2], x[1]]), x[4])


def with_gradients(loss: Loss, values: list[Tensor]) -> list[Tensor]:
    """The value of a loss and its gradients."""
    value = loss(values)
    gradients: Any = torch.autograd.grad(value, values, allow_unused=True)
    return [value, *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, values, strict=True))]


PLAIN_AND_OWN: dict[str, tuple[Loss, Loss]] = {
    "clip": (lambda x: softmax(x[0], x[1], x[4]), lambda x: LOSSES.get("clip")(x[0], x[1], x[4])),
    "t2i": (
        lambda x: softmax(x[0], x[1], x[4], "t2i"),
        lambda x: LOSSES.get("clip")(x[0], x[1], x[4], direction="t2i"),
    ),
    "i2t": (
        lambda x: softmax(x[0], x[1], x[4], "i2t"),
        lambda x: LOSSES.get("clip")(x[0], x[1], x[4], direction="i2t"),
    ),
    "siglip": (
        lambda x: sigmoid(x[0], x[1], x[4], x[5]),
        lambda x: LOSSES.get("siglip")(x[0], x[1], x[4], logit_bias=x[5]),
    ),
    "focal": (
        lambda x: sigmoid(x[0], x[1], x[4], gamma=2.0),
        lambda x: LOSSES.get("focal")(x[0], x[1], x[4], gamma=2.0),
    ),
    "three way": (plain_three, lambda x: total(three_way_loss(x[0], x[1], x[2:4], x[4], a=0.5, b=0.2))),
    "third tower": (
        lambda x: 0.4 * softmax(x[0], x[2], x[4]) + 0.6 * softmax(x[1], x[2], x[4]),
        lambda x: total(third_tower_loss(x[0], x[1], x[2], x[4], a=0.4)),
    ),
    "foils": (plain_foils, foils),
    "truths": (plain_truths, truths),
    "distillation": (plain_distillation, distillation),
    "info nce": (plain_info_nce, lambda x: info_nce(*x[:3], temperature=0.1, left_out=left_out)),
    **{
        f"draft {over}": (
            lambda x, over=over, root=root: plain_draft(x, over, (0.3, 0.8), root),
            lambda x, over=over, root=root: draft(x, over, (0.3, 0.8), root),
        )
        for over, root in (
            ("scalars", False),
            ("rows", False),
            ("positives", True),
            ("negatives", False),
            ("apart", True),
        )
    },
}


def check_in_process_group(names: Sequence[str], row_limits: Sequence[int]) -> None:
    """Compares in each process: the losses, and the average of the processes' gradients, with the plain form's."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    size = COUNT // world_size
    own = slice(rank * size, (rank + 1) * size)

    def shared(loss: Loss) -> Loss:
        return lambda x: loss([of[own] if of.ndim else of for of in x])

    for name in names:
        plain, loss = PLAIN_AND_OWN[name]
        expected = with_gradients(plain, inputs())
        for rows in row_limits:
            blocks._PAIRS = rows * COUNT  # pyright: ignore[reportPrivateUsage]
            value, *gradients = with_gradients(shared(loss), inputs())
            for gradient in gradients:
                dist.all_reduce(gradient)
            found = [value, *(gradient / world_size for gradient in gradients)]
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def check_over_processes() -> None:
    """Checks all losses, in each of several processes."""
    dist.init_process_group("gloo")
    check_in_process_group(list(PLAIN_AND_OWN), [COUNT, 2])
    dist.destroy_process_group()
