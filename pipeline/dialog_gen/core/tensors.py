"""Tensors as safetensors files, and their hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dialog_gen.core.files import replacing


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes them, from whatever device, as a file that appears whole or not at all.

    Raises SafetensorError for what the disk refuses.
    """
    with replacing(file) as part:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, part, metadata={"format": "pt"} if metadata is None else metadata)


def sha256_of_weights(state: Mapping[str, Tensor]) -> str:
    """Hash of tensors with their names, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()
