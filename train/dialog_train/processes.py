"""Rows and columns of all processes, with gradients, for losses of the batch of all processes.

DistributedDataParallel averages the gradients of the processes. Here every process computes the same loss, and the
gradients are such that their average is the gradient of that loss.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def place() -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather_rows(rows: Tensor) -> Tensor:
    """Gathers rows of all processes: (N, ...) per process -> (processes x N, ...) in order of rank.

    Used where every process computes the same function of all rows. Every process has the same number of rows.
    """
    return rows if place()[1] == 1 else _GatherRows.apply(rows)  # type: ignore[no-any-return]


def gather_columns(rows: Tensor) -> Tensor:
    """Gathers rows as `gather_rows` does, where each process compares all of them with rows of its own only.

    Each process's gradient has only the terms of its own rows; the sum over the processes is formed in the backward
    pass, in which therefore all processes must take part.
    """
    return rows if place()[1] == 1 else _GatherColumns.apply(rows)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)


class _GatherRows(_Gather):
    """Every process computes the same function, so the gradient of its own rows is complete without communication.

    It is multiplied by the number of processes because the average is taken where the sum is needed.
    """

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        rank, world_size = place()
        return gradients[0][rank * ctx.count : (rank + 1) * ctx.count] * world_size


class _GatherColumns(_Gather):
    """Adds the gradients of all processes. Those came through `gather_rows`, which multiplied them."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        rank, _ = place()
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        own = slice(rank * ctx.count, (rank + 1) * ctx.count)
        if dist.get_backend() == "nccl":
            part = torch.empty_like(gradient[own])
            dist.reduce_scatter_tensor(part, gradient)  # pyright: ignore[reportDeprecated]
            return part
        dist.all_reduce(gradient)
        return gradient[own].clone()
