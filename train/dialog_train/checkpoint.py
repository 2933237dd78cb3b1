"""The state of a training, so that it can resume exactly: one safetensors file with JSON in its header, no pickle.

    FOLDER/step-00000120.safetensors    weights, EMA and optimizer state by the model's parameter names; in the header
                                        the step, the fingerprint of the training, the scaler's state of fp16, and a
                                        SHA-256 of all this

A file gets its final name only when it is complete and on the disk. The checkpoint before it is kept, in case the
newest one is damaged; older ones are removed. The order of the data and the random numbers of a step are determined by
the recipe's seed and the step's number, so they are not stored.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import give_usual_mode, put_file
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.tensors import sha256_of_weights
from dialog_train.sharding import all_true, own, shared_like, whole

_META, _SHA256 = "training", "sha256"
_PREFIX = "step-"
_SCALER = "scaler"


class DamagedCheckpointError(UsageError):
    """A checkpoint does not hold what was saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The values that change in each step, by reference; parameters have the model's names."""

    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    ema: dict[str, Tensor] | None
    is_sharded: bool = False
    """Whether each process has only its share of the tensors. Then all processes must call all functions."""
    scaler: torch.amp.GradScaler | None = None
    """Scales the loss in fp16; its scale depends on all steps before."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under names such as `weights/text_projection` and `exp_avg/text_projection`.

        They may be shares: see `dialog_train.sharding`.
        """
        found = {f"weights/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            state: dict[str, Tensor] = self.optimizer.state.get(parameter, {})
            found |= {f"{key}/{name}": value for key, value in state.items()}
        return found | {f"ema/{name}": average for name, average in (self.ema or {}).items()}

    def restore(self, tensors: Mapping[str, Tensor], scaler: dict[str, Any] | None) -> None:
        """Copies the values of tensors that `tensors` returned, and sets the scaler's state."""
        for place, value in tensors.items():
            key, _, name = place.partition("/")
            parameter = self.parameters[name]
            if key == "weights":
                own(parameter.data).copy_(own(shared_like(value, parameter.data)))
            elif key == "ema" and self.ema is not None:
                own(self.ema[name]).copy_(own(shared_like(value, self.ema[name])))
            else:
                # The optimizer's count of steps has no dimension and is not divided.
                like = parameter.data if value.ndim else own(parameter.data)
                self.optimizer.state[parameter][key] = shared_like(value, like)
        if self.scaler is not None and scaler is not None:
            self.scaler.load_state_dict(scaler)

    def require_finite(self, step: int) -> None:
        """Raises FailedCheckError if a weight is not finite after `step` steps."""
        weights = {**self.parameters, **{f"{name} (ema)": average for name, average in (self.ema or {}).items()}}
        flags = torch.stack([own(weight.detach()).isfinite().all() for weight in weights.values()])
        finite = all_true(flags, self.is_sharded).tolist()
        if not all(finite):
            name = next(name for name, good in zip(weights, finite, strict=True) if not good)
            raise FailedCheckError(
                f"step {step}: the weights of {name} are not finite, and are not saved. Try a lower optim.lr, "
                "optim.grad_clip, or another optim.precision."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTraining:
    """An intact checkpoint in memory."""

    file: Path
    step: int
    fingerprint: dict[str, Any]
    tensors: dict[str, Tensor]
    scaler: dict[str, Any] | None

    def restore(self, trained: Trained) -> None:
        """Restores it in place. Raises UsageError if it has other parameters."""
        found = {name.partition("/")[2] for name in self.tensors}
        if found != set(trained.parameters):
            differing = sorted(found ^ set(trained.parameters))[0]
            raise UsageError(f"{self.file} is of another model: they differ in {differing}.")
        trained.restore(self.tensors, self.scaler)


def save_training(
    folder: Path, step: int, trained: Trained, fingerprint: dict[str, Any], *, writes: bool = True
) -> None:
    """Writes the state after `step` steps and keeps the newest checkpoint before it; `fingerprint` is JSON.

    The file is the same for any number of processes, sharded or not. A process that does not write (`writes`) only
    gives its shares.

    Raises FailedCheckError, and writes nothing, if a weight is not finite; OSError or SafetensorError if the folder
    cannot be written.
    """
    trained.require_finite(step)
    if not writes:
        for value in trained.tensors().values():
            whole(value)
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: whole(value).cpu().contiguous() for name, value in trained.tensors().items()}
    scaler = None if trained.scaler is None else trained.scaler.state_dict()
    content = json.dumps({"step": step, _SCALER: scaler, **fingerprint})
    part, target = folder / "saving.part", folder / f"{_PREFIX}{step:08}.safetensors"
    try:
        save_file(tensors, part, metadata={_META: content, _SHA256: _sha256(content, tensors)})
        give_usual_mode(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        if target.is_dir():
            shutil.rmtree(target)
        put_file(part, target)
    finally:
        part.unlink(missing_ok=True)
    # A later checkpoint is a damaged one, from which this training did not continue.
    before = [file for file in _files(folder) if file < target][-1:]
    for file in _files(folder):
        if file.is_dir():
            shutil.rmtree(file)
        elif file not in (target, *before):
            file.unlink()


def saved_trainings(folder: Path) -> list[Path]:
    """The checkpoint files, the newest first."""
    return _files(folder)[::-1]


def read_training(file: Path) -> SavedTraining:
    """Reads a checkpoint into memory. Raises DamagedCheckpointError if it does not hold what was saved."""
    try:
        with safe_open(file, "pt") as content:
            meta: dict[str, str] = content.metadata()
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
        if _SHA256 not in meta:
            raise ValueError("it has no checksum")
        if meta != {_META: meta[_META], _SHA256: _sha256(meta[_META], tensors)}:
            raise ValueError("its checksum is wrong")
        fingerprint = parse_json(meta[_META])
        return SavedTraining(
            file=file,
            step=fingerprint.pop("step"),
            scaler=fingerprint.pop(_SCALER),
            fingerprint=fingerprint,
            tensors=tensors,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedCheckpointError(f"{file} is damaged ({error})") from None


def _sha256(content: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{content}\n{sha256_of_weights(tensors)}".encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*.safetensors"))
