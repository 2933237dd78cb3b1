"""The state of a training, so that it can resume exactly: one safetensors file with JSON in its header, no pickle.

    FOLDER/step-00000120.safetensors    weights, EMA and optimizer state by the model's parameter names

A file gets its final name only when it is complete; the previous file is removed after that. The order of the data and
the random numbers of a step are determined by the recipe's seed and the step's number, so they are not stored.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dialog_gen.core.errors import UsageError

_META = "training"
_PREFIX = "step-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The tensors that change in each step, by reference; parameters have the model's names."""

    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    ema: dict[str, Tensor] | None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under names such as `weights/text_projection` and `exp_avg/text_projection`."""
        found = {f"weights/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            state: dict[str, Tensor] = self.optimizer.state.get(parameter, {})
            found |= {f"{key}/{name}": value for key, value in state.items()}
        return found | {f"ema/{name}": average for name, average in (self.ema or {}).items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copies the values of tensors that `tensors` returned."""
        for place, value in tensors.items():
            key, _, name = place.partition("/")
            parameter = self.parameters[name]
            if key == "weights":
                parameter.data.copy_(value)
            elif key == "ema" and self.ema is not None:
                self.ema[name].copy_(value)
            else:
                self.optimizer.state[parameter][key] = value.to(parameter.device)


def save_training(folder: Path, step: int, trained: Trained, fingerprint: dict[str, Any]) -> None:
    """Writes the state after `step` steps; `fingerprint` is JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in trained.tensors().items()}
    part = folder / "saving.part"
    save_file(tensors, part, metadata={_META: json.dumps({"step": step, **fingerprint})})
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    earlier = _files(folder)
    target = folder / f"{_PREFIX}{step:08}.safetensors"
    part.replace(target)
    for file in earlier:
        if file != target:
            file.unlink()


def newest_training(folder: Path) -> Path | None:
    """The newest checkpoint file, or None."""
    return max(_files(folder), default=None)


def read_fingerprint(file: Path) -> dict[str, Any]:
    """The JSON in a checkpoint's header. Raises UsageError for a damaged file."""
    try:
        with safe_open(file, "pt") as content:
            return json.loads(content.metadata()[_META])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file} cannot be resumed from ({error}): remove it to start again.") from None


def load_training(file: Path, trained: Trained) -> None:
    """Restores a checkpoint in place. Raises UsageError for a checkpoint with other parameters."""
    with safe_open(file, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
    found = {name.partition("/")[2] for name in tensors}
    if found != set(trained.parameters):
        differing = sorted(found ^ set(trained.parameters))[0]
        raise UsageError(f"{file} is of another model: they differ in {differing}.")
    trained.restore(tensors)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*.safetensors"))
