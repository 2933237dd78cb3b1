"""Objectives: what `loop.fit` makes of a batch. Each gives named losses of the global batch, whose sum is minimised."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dialog_train.config import DraftLossSettings
from dialog_train.losses import draft_loss
from dialog_train.training_set import Batch

Encode = Callable[[Tensor], Tensor]
"""Token ids (N, L) -> unit-norm text vectors (N, D) in float32: a `TextTower`, in the recipe's precision."""
Objective = Callable[[Batch, Encode, Tensor], dict[str, Tensor]]
"""(this process's batch, encode, logit_scale) -> losses, computed alike in every process."""


def draft_objective(loss: DraftLossSettings, *, caption_only: bool = False) -> Objective:
    """DRAFT's losses; with `caption_only`, captions stand in for the dialogues."""

    def objective(batch: Batch, encode: Encode, logit_scale: Tensor) -> dict[str, Tensor]:
        images = gather_rows(batch.image_vectors)
        captions = gather_rows(encode(batch.caption_tokens))
        dialogues = captions if caption_only else gather_rows(encode(batch.dialogue_tokens))
        return draft_loss(images, captions, dialogues, logit_scale, **loss.model_dump())

    return objective


def gather_rows(rows: Tensor) -> Tensor:
    """(N, D) of every process -> (processes x N, D) in order of rank, with gradients.

    For objectives that every process computes alike, over all rows, under DistributedDataParallel.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)  # type: ignore[no-any-return]


class _GatherRows(torch.autograd.Function):
    """Every process has the whole loss, so the gradient of its own rows is complete without communication. It is
    multiplied by their number because DistributedDataParallel takes the mean over processes where the sum is meant.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        start = dist.get_rank() * ctx.count
        return gradients[0][start : start + ctx.count] * dist.get_world_size()
