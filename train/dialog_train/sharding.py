"""FSDP2: every process keeps its share of the weights, of their gradients and of the optimizer's state.

The layers of each stack of transformer layers are gathered one after the other while they compute; what is outside of
them is gathered for the whole step. Single numbers, such as the logit scale, stay whole in every process.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class Shards:
    """A module whose parameters are divided among the processes, from its construction until `gather`."""

    def __init__(self, module: nn.Module) -> None:
        """Divides the parameters of `module`, which must be the same in all processes, in place."""
        self._places = [
            (owner, name, parameter)
            for owner in module.modules()
            for name, parameter in owner.named_parameters(recurse=False)
        ]
        self._whole = [parameter for parameter in module.parameters() if parameter.numel() == 1]
        for layer in _layers(module):
            fully_shard(layer)
        fully_shard(module, ignored_params=set(self._whole))
        self._of = {id(parameter): getattr(owner, name) for owner, name, parameter in self._places}

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The share of a parameter that was in the module before; a parameter that is not in it is returned itself."""
        return self._of.get(id(parameter), parameter)

    def average_whole_gradients(self) -> None:
        """Averages the gradients of what stays whole, as `fully_shard` does for the rest."""
        for parameter in self._whole:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def gather(self) -> None:
        """Gives the module its former parameters, with the trained values, in every process. It is not run again."""
        for owner, name, parameter in self._places:
            parameter.data = whole(getattr(owner, name).detach())
            setattr(owner, name, parameter)


def whole(value: Tensor) -> Tensor:
    """All of a tensor; for a share, all processes must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def own(value: Tensor) -> Tensor:
    """The share of a tensor that this process has."""
    return value.to_local() if isinstance(value, DTensor) else value


def shared_like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of `other`, divided like it; for a share, all processes must call it."""
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements) if isinstance(other, DTensor) else value


def all_true(flags: Tensor, shares: bool) -> Tensor:
    """Where `flags` are true in all processes, if they are about shares."""
    if shares:
        flags = flags.int()
        dist.all_reduce(flags, dist.ReduceOp.MIN)
    return flags.bool()


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scales the gradients down to a total norm of at most `most`; returns their norm. All processes must call it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shares = [own(gradient) for gradient in gradients if isinstance(gradient, DTensor)]
    others = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    square = torch.stack([share.square().sum() for share in shares]).sum()
    dist.all_reduce(square)
    norm = torch.stack([square, *(gradient.square().sum() for gradient in others)]).sum().sqrt()
    # As in torch.nn.utils.clip_grad_norm_.
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*shares, *others):
        gradient.mul_(scale)
    return norm


def _layers(module: nn.Module) -> Iterator[Any]:
    """The layers of the outermost stacks, each once."""
    for child in module.children():
        if type(child) is nn.ModuleList:
            yield from (layer for layer in child if any(True for _ in layer.parameters()))
        else:
            yield from _layers(child)
