"""Tensors as safetensors files."""

from collections.abc import Mapping
from pathlib import Path

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
