"""Tunes a CLIP's text tower; the vectors of its frozen image tower are the counterpart. The system and its data."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.clip.third_tower.checkpoint import new_third_tower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_train.config import DialogueRecipe, OptimSettings
from dialog_train.data.training_set import Batch, EpochOrder
from dialog_train.lora import save_tuned
from dialog_train.mini_batches import texts_in_mini_batches
from dialog_train.optim import select_trainable
from dialog_train.system import Share


class Encode(Protocol):
    """Encodes texts with a `TextTower` in the recipe's precision."""

    def __call__(self, *texts: Texts, tower: TextTower | None = None) -> tuple[Tensor, ...]:
        """Sets of N texts -> unit-norm text vectors (N, D) of each set, in float32. One call is one forward.

        `tower`: another tower than the trained one.
        """
        ...


Objective = Callable[[Any, Encode, Tensor], dict[str, Tensor]]
"""(this process's batch, encode, logit_scale) -> losses of the whole batch, the same in every process. The batch comes
from the data: a `Batch`, or the objective's own class. An objective that holds tensors is a module."""


class Rows(Protocol):
    """The part of `TrainingSet` that `PairBatches` uses."""

    config: dict[str, Any]

    def __len__(self) -> int: ...
    def batch(self, rows: Any, epoch: int, *, concatenate: bool, full_length: bool = False) -> Batch:
        """The vectors and texts of the given rows."""
        ...


class TextTuning:
    """A `System` that trains the text tower of `clip` in place, or its last layers, and the logit scale.

    With `questions_only`, it trains a copy of both; what it saves reads only questions with this copy.
    """

    may_be_sharded = True

    def __init__(self, clip: Clip, objective: Objective, optim: OptimSettings, *, questions_only: bool = False) -> None:
        """Raises UsageError for a tower of an unknown kind, or with fewer layers than are to be trained."""
        try:
            self.tower = TextTower(clip.model)
        except TypeError as error:
            raise UsageError(f"{clip.name} cannot be trained: {error}.") from None
        self.clip, self.name = clip, clip.name
        self.fingerprint: dict[str, Any] = {"weights_sha256": clip.weights_sha256}
        self.model: nn.Module = clip.model
        logit_scale: nn.Parameter = clip.model.logit_scale
        if questions_only:
            self.clip = new_third_tower(clip, beta=1.0, question_beta=0.0)
            self.tower, logit_scale = self.clip.third, copy.deepcopy(logit_scale)
            self.model = nn.ModuleDict({"third": self.tower})
            self.model.register_parameter("logit_scale", logit_scale)
        self.logit_scale: nn.Parameter | None = logit_scale
        self.trainable = select_trainable(self.model, self.tower, optim)
        self.module: nn.Module = _Trainee(self.tower, logit_scale, objective, optim.mini_batch_size)
        # Hugging Face's towers may have a pooler that is not used.
        self.may_leave_parameters_unused = not self.tower.is_native

    @property
    def sees_padding(self) -> bool:
        """Whether texts must be padded to the model's full context length."""
        return self.tower.whole is not None

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes a checkpoint folder."""
        save_tuned(self.clip, self.model, self.tower, folder, changed)


class _Trainee(nn.Module):
    def __init__(
        self, tower: TextTower, logit_scale: nn.Parameter, objective: Objective, mini_batch_size: int | None
    ) -> None:
        super().__init__()
        self.tower, self.logit_scale = tower, logit_scale
        self._objective, self._mini_batch_size = objective, mini_batch_size

    def forward(self, batch: Any) -> dict[str, Tensor]:
        # Mixed precision is for the tower only; losses need full float32.
        device = self.logit_scale.device.type
        mixed = torch.is_autocast_enabled(device)

        def forward(tower: TextTower, *texts: Texts) -> tuple[Tensor, ...]:
            with torch.autocast(device, enabled=mixed, dtype=torch.get_autocast_dtype(device)):
                vectors = tower(*texts)
            return tuple(normalize(rows.float(), dim=-1) for rows in vectors) if mixed else vectors

        def encode(*texts: Texts, tower: TextTower | None = None) -> tuple[Tensor, ...]:
            chosen = tower or self.tower
            if self._mini_batch_size is None:
                return forward(chosen, *texts)
            return texts_in_mini_batches(
                lambda one: forward(chosen, one)[0], texts, self.tower.pad_id, self._mini_batch_size
            )

        with torch.autocast(device, enabled=False):
            return self._objective(batch, encode, self.logit_scale.exp())


class PairBatches:
    """`Data` of images with a caption and a dialogue each, in a new order every epoch."""

    def __init__(self, recipe: DialogueRecipe, rows: Rows, *, full_length: bool) -> None:
        """Raises UsageError for a batch that is larger than the data."""
        self._rows, self._full_length = rows, full_length
        self._concatenate = recipe.dialogues == "concatenate"
        self._order = EpochOrder(len(rows), recipe.optim.batch_size, recipe.seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.fingerprint: dict[str, Any] = {"rows": len(rows), "config_sha256": sha256_json(rows.config)}

    def batch(self, step: int, share: Share) -> Batch:
        """A process's share of the batch of a step, as `Data` describes."""
        epoch, chosen = self._order.rows(step, share)
        return self._rows.batch(chosen, epoch, concatenate=self._concatenate, full_length=self._full_length)
