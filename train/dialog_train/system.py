"""The two protocols that `loop.fit` needs: `System`, what is trained, and `Data`, the batches."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

AnyDataclass = TypeVar("AnyDataclass")


class System(Protocol):
    """A model with its objective."""

    name: str
    """Name for messages and reports."""
    fingerprint: dict[str, Any]
    """Identifies the model before its training, as JSON values: a hash of its weights."""
    model: nn.Module
    """The module that owns the trained parameters; its names identify them."""
    module: nn.Module
    """Called once per step: this process's batch -> named losses of the batch of all processes; their sum is minimised.
    Every process computes the same losses (see `gather_rows`), with features and losses in float32."""
    trainable: dict[str, nn.Parameter]
    logit_scale: nn.Parameter | None
    """Logarithm of the inverse temperature, limited to CLIP's range; None if the system has none."""
    may_leave_parameters_unused: bool

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes a folder that can be loaded as a model; `changed` replaces parameters of the same names."""
        ...


class AnyBatch(Protocol):
    """The input of a step."""

    @property
    def image_ids(self) -> list[str]:
        """Ids of the images, for error messages."""
        ...

    def to(self, device: torch.device) -> "AnyBatch":
        """A copy with its tensors on `device`."""
        ...

    def statistics(self) -> dict[str, float]:
        """Values to log in addition to the losses."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """The part of each batch that a process takes. The parts of all processes, in order of rank, form the batch."""

    rank: int
    world_size: int


EVERYTHING = Share(0, 1)


class Data(Protocol):
    """Batches by step number: a step gets the same rows in every run and for any number of processes."""

    fingerprint: dict[str, Any]
    """Identifies the rows, as JSON values."""
    steps_per_epoch: int

    def batch(self, step: int, share: Share) -> AnyBatch:
        """A process's share of the batch of step `step`, counted from 0.

        Raises UsageError if the batch size is not a multiple of the number of processes.
        """
        ...


def to_device(batch: AnyDataclass, device: torch.device) -> AnyDataclass:
    """Copies a dataclass with its tensors moved to `device`."""
    own: Any = batch
    tensors = {f.name: value for f in fields(own) if isinstance(value := getattr(own, f.name), Tensor)}
    return replace(own, **{name: value.to(device) for name, value in tensors.items()})


def share_of_repeated(rows: Tensor) -> float:
    """The share (0 to 1) of rows (N, ...) that equal another row; such rows are false negatives of each other."""
    _, belongs, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    return float((counts[belongs] > 1).double().mean())


def gather_rows(rows: Tensor) -> Tensor:
    """Gathers rows of all processes, with gradients: (N, ...) per process -> (processes x N, ...) in order of rank.

    Used for losses that every process computes over all rows, under DistributedDataParallel.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)  # type: ignore[no-any-return]


class _GatherRows(torch.autograd.Function):
    """The autograd function of `gather_rows`.

    Every process computes the whole loss, so the gradient of its own rows is complete without communication. It is
    multiplied by the number of processes because DistributedDataParallel averages gradients where their sum is needed.
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
