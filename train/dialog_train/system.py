"""The two protocols that `loop.fit` needs: `System`, what is trained, and `Data`, the batches."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dialog_gen.clip.text.texts import Texts

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
    Every process computes the same losses (see `processes`), with features and losses in float32."""
    trainable: dict[str, nn.Parameter]
    logit_scale: nn.Parameter | None
    """Logarithm of the inverse temperature, limited to CLIP's range; None if the system has none."""
    may_leave_parameters_unused: bool
    # Optional: `may_be_sharded = True` if every parameter is used within the forward of `module`, and those in lists of
    # layers within the forward of their layer, so that `optim.shard` is possible.

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes a folder that can be loaded as a model; `changed` replaces parameters of the same names."""
        ...


class AnyBatch(Protocol):
    """The input of a step."""

    @property
    def image_ids(self) -> Sequence[str]:
        """Ids of the images, for error messages."""
        ...

    def to(self, device: torch.device) -> "AnyBatch":
        """A copy with its tensors on `device`."""
        ...

    def statistics(self) -> Mapping[str, float | Tensor]:
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
    """Copies a dataclass with its tensors and texts moved to `device`; from pinned memory it does not wait."""
    own: Any = batch
    moved: dict[str, Any] = {}
    for field in fields(own):
        value = getattr(own, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device, non_blocking=True)
        elif isinstance(value, Texts):
            moved[field.name] = value.to(device)
    return replace(own, **moved)


def pinned(batch: AnyDataclass) -> AnyDataclass:
    """Copies a dataclass with its tensors and texts in pinned memory, from which a GPU takes them without waiting."""
    own: Any = batch
    values = {field.name: getattr(own, field.name) for field in fields(own)}
    return replace(own, **{k: value.pin_memory() for k, value in values.items() if isinstance(value, Tensor | Texts)})


def share_of_repeated(rows: Tensor) -> Tensor:
    """The share (0 to 1) of rows of integers (N, L) that equal another row, as a scalar on the device of the rows.

    Such rows are false negatives of each other. Rows are compared by hashes of 64 bits; nothing waits for the device.
    """
    hashes = (rows * _multipliers(rows.shape[1], rows.device)).sum(1).sort().values
    same, no = hashes[1:] == hashes[:-1], hashes.new_zeros(1, dtype=torch.bool)
    return (torch.cat([same, no]) | torch.cat([no, same])).float().mean()


@functools.cache
def _multipliers(count: int, device: torch.device) -> Tensor:
    drawn = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count) | 1
    return torch.from_numpy(drawn).to(device)
