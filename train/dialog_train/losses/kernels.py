"""The GPU kernels of losses, where they can run: see `triton_kernels`."""

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def kernels_for(values: Tensor) -> Any:
    """The module of kernels for values on a GPU, or None where they cannot run: then plain operations do."""
    return _kernels_on(values.device) if values.device.type == "cuda" else None


@lru_cache
def _kernels_on(device: torch.device) -> Any:
    try:
        import dialog_train.losses.triton_kernels as kernels

        kernels.sums(torch.zeros(1, device=device), 1.0, 2)
    # Triton may lack a compiler, or not know the GPU.
    except Exception as error:  # noqa: BLE001
        _log.warning("the losses run without their GPU kernels, which takes longer: %s", error)
        return None
    return kernels
