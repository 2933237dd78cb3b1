"""Saves tensors as safetensors files, loads and hashes them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dialog_gen.core.files import check_regular, give_usual_mode, replacing


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors, which may be on any device, to `file` atomically: the file is complete or does not appear.

    Raises OSError or SafetensorError if the file cannot be written.
    """
    with replacing(file) as part:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, part, metadata={"format": "pt"} if metadata is None else metadata)
        give_usual_mode(part)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises OSError or SafetensorError if it cannot be read."""
    check_regular(file)
    return load_file(file)


def sha256_of_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of all tensors (name, dtype, shape and bytes), sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()
