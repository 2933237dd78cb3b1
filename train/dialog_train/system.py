"""What `loop.fit` trains, and on what: the two halves that differ between objectives."""

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
    """For people."""
    fingerprint: dict[str, Any]
    """Identifies the model before its training, as JSON values: a hash of its weights."""
    model: nn.Module
    """Owns the trained parameters; they are known by the names it has for them."""
    module: nn.Module
    """One call a step: this process's batch -> named losses of the batch of all processes, whose sum is minimised.
    Every process computes the same (see `gather_rows`), features and losses in float32."""
    trainable: dict[str, nn.Parameter]
    logit_scale: nn.Parameter | None
    """Logarithm of the inverse temperature, kept in CLIP's range; None where there is none."""
    may_leave_parameters_unused: bool

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes what loads as a model; `changed` takes the place of its own parameters of these names."""
        ...


class AnyBatch(Protocol):
    """What a step takes."""

    @property
    def image_ids(self) -> list[str]:
        """The ids of the rows, for a message about a batch that went wrong."""
        ...

    def to(self, device: torch.device) -> "AnyBatch":
        """With its tensors on a device."""
        ...

    def statistics(self) -> dict[str, float]:
        """Figures to log beside the losses."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """The part of each batch that a process takes; together they take all of it, in order of rank."""

    rank: int
    world_size: int


EVERYTHING = Share(0, 1)


class Data(Protocol):
    """Batches by number: a step gets the same rows in every run, whatever the number of processes."""

    fingerprint: dict[str, Any]
    """Identifies the rows, as JSON values."""
    steps_per_epoch: int

    def batch(self, step: int, share: Share) -> AnyBatch:
        """A share of the batch of step `step`, from 0. Raises UsageError for a batch that cannot be shared so."""
        ...


def to_device(batch: AnyDataclass, device: torch.device) -> AnyDataclass:
    """A dataclass with its tensors on a device."""
    own: Any = batch
    tensors = {f.name: value for f in fields(own) if isinstance(value := getattr(own, f.name), Tensor)}
    return replace(own, **{name: value.to(device) for name, value in tensors.items()})


def share_of_repeated(rows: Tensor) -> float:
    """The share, 0 to 1, of rows (N, ...) that are equal to another one, and so are no true negatives of it."""
    _, belongs, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    return float((counts[belongs] > 1).double().mean())


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of every process -> (processes x N, ...) in order of rank, with gradients.

    For losses that every process computes alike, over all rows, under DistributedDataParallel.
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
