"""Attention within texts of different lengths, with its gradient, by hand: in place of a GPU's kernel."""

import itertools
from typing import Any

import torch


def _shares(q: torch.Tensor, k: torch.Tensor, causal: bool) -> torch.Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = scores + torch.full(scores.shape[1:], -torch.inf, dtype=q.dtype).triu(1)
    return scores.softmax(-1)


@torch.library.custom_op("test::attend", mutates_args=())
def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, longest: int, causal: bool
) -> torch.Tensor:
    """By hand, text by text, as `torch.nn.attention.varlen.varlen_attn` defines it."""
    assert starts.dtype == torch.int32
    out = torch.full_like(q, torch.nan)
    for start, end in itertools.pairwise(starts.tolist()):
        assert end - start <= longest
        out[start:end] = torch.einsum("hqk,khd->qhd", _shares(q[start:end], k[start:end], causal), v[start:end])
    return out


@attend.register_fake
def _(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("test::attend_backward", mutates_args=())
def attend_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradients = [torch.zeros_like(x) for x in (q, k, v)]
    scale = q.shape[-1] ** -0.5
    for start, end in itertools.pairwise(starts.tolist()):
        one, query, key, value = (x[start:end] for x in (gradient, q, k, v))
        shares = _shares(query, key, causal)
        of_shares = torch.einsum("qhd,khd->hqk", one, value)
        of_scores = shares * (of_shares - (shares * of_shares).sum(-1, keepdim=True)) * scale
        gradients[0][start:end] = torch.einsum("hqk,khd->qhd", of_scores, key)
        gradients[1][start:end] = torch.einsum("hqk,qhd->khd", of_scores, query)
        gradients[2][start:end] = torch.einsum("hqk,qhd->khd", shares, one)
    return gradients[0], gradients[1], gradients[2]


@attend_backward.register_fake
def _(gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object) -> Any:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _backward(ctx: Any, gradient: torch.Tensor) -> Any:
    return *attend_backward(gradient, *ctx.saved_tensors, *ctx.rest), None, None, None


def _save(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


attend.register_autograd(_backward, setup_context=_save)


def varlen_attn(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_k: Any,
    max_q: int,
    max_k: int,
    *,
    window_size: Any,
    scale: float | None = None,
) -> Any:
    """As torch's: causal with a window of (-1, 0), bidirectional with (-1, -1)."""
    assert window_size in ((-1, 0), (-1, -1))
    assert scale in (None, q.shape[-1] ** -0.5)
    assert cu_k is cu_q
    assert max_k == max_q
    return attend(q, k, v, cu_q, max_q, window_size == (-1, 0))
