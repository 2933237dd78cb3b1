"""Weights on disk."""

import stat
from pathlib import Path

import torch

from dialog_gen.core.tensors import load_tensors, save_tensors


def test_others_may_read_weights_as_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.safetensors")]
    assert modes[0] == modes[1]
    assert load_tensors(tmp_path / "a.safetensors")["a"].tolist() == [1.0, 1.0]
