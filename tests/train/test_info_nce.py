import math

import pytest
import torch
from torch.nn.functional import normalize

from dialog_train.losses.info_nce import info_nce


def vectors(n: int = 5, k: int = 3, d: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    q, p, n_jk = (torch.randn(count, d, dtype=torch.float64, generator=generator) for count in (n, n, n * k))
    return normalize(q, dim=-1), normalize(p, dim=-1), normalize(n_jk, dim=-1)


def by_hand(
    q: list[list[float]], p: list[list[float]], negatives: list[list[float]], tau: float, out: set[tuple[int, int]]
) -> float:
    """`out`: (i, j) that are left out, j counted over targets and then negatives."""

    def e(x: list[float], y: list[float]) -> float:
        return math.exp(sum(a * b for a, b in zip(x, y, strict=True)) / tau)

    total = 0.0
    for i in range(len(q)):
        forward = sum(e(q[i], c) for j, c in enumerate(p + negatives) if (i, j) not in out)
        backward = sum(e(q[j], p[i]) for j in range(len(q)) if (j, i) not in out)
        total -= math.log(e(q[i], p[i]) / forward) + math.log(e(q[i], p[i]) / backward)
    return total / len(q)


@pytest.mark.parametrize("tau", [0.05, 1.0])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("out", [set[tuple[int, int]](), {(0, 1), (1, 0), (3, 2)}])
def test_against_hand(tau: float, hard: bool, out: set[tuple[int, int]]) -> None:
    q, p, negatives = vectors()
    if hard and out:
        out |= {(2, 5), (4, 19)}
    left_out = torch.zeros(5, 20 if hard else 5, dtype=torch.bool)
    for place in out:
        left_out[place] = True
    found = info_nce(q, p, negatives if hard else None, temperature=tau, left_out=left_out.__getitem__ if out else None)
    expected = by_hand(q.tolist(), p.tolist(), negatives.tolist() if hard else [], tau, out)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_without_negatives_it_is_twice_the_loss_of_clip() -> None:
    from open_clip.loss import ClipLoss

    q, p, _ = vectors()
    assert info_nce(q, p, temperature=0.05).item() == pytest.approx(2 * ClipLoss()(q, p, 20.0).item(), abs=1e-12)


@pytest.mark.slow
def test_against_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    leaves = [x.requires_grad_() for x in vectors()]
    q, p, negatives = (normalize(x, dim=-1) for x in leaves)  # theirs does so itself
    theirs = losses.MultipleNegativesRankingLoss(
        model=None, scale=20.0, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    columns = negatives.view(5, 3, 4).unbind(1)  # one list of N a place in the triplet
    expected = 2 * theirs.compute_loss_from_embeddings([q, p, *columns], labels=None)  # it gives the mean of the two
    found = info_nce(q, p, negatives, temperature=0.05)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    gradients = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (found, expected)]
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


def test_what_is_left_out_has_no_gradient() -> None:
    q, p, negatives = vectors()
    negatives.requires_grad_()
    left_out = torch.zeros(5, 20, dtype=torch.bool)
    left_out[:, 7] = True
    info_nce(q, p, negatives, left_out=left_out.__getitem__).backward()
    assert negatives.grad is not None
    assert negatives.grad.isfinite().all()
    assert not negatives.grad[2].any()
    assert negatives.grad[3].any()


@pytest.mark.parametrize(
    ("queries", "targets", "temperature", "said"),
    [
        ((3, 4), (2, 4), 0.05, r"\(3, 4\) and \(2, 4\)"),
        ((3,), (3,), 0.05, r"\(N, D\)"),
        ((3, 4), (3, 4), 0.0, "got 0.0"),
    ],
)
def test_refuses(queries: tuple[int, ...], targets: tuple[int, ...], temperature: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        info_nce(torch.ones(queries), torch.ones(targets), temperature=temperature)
