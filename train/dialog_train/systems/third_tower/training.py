"""CLIP-3Modal: trains a third tower for dialogues next to a CLIP's frozen towers (thesis, section 4.3)."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.third_tower.checkpoint import ThirdTowerClip, new_third_tower, text_tower
from dialog_train.data.training_set import Batch
from dialog_train.lora import save_tuned
from dialog_train.losses import third_tower_loss
from dialog_train.mini_batches import in_mini_batches
from dialog_train.optim import select_trainable
from dialog_train.systems.third_tower.config import ThirdTowerRecipe


class ThirdTower:
    """A `System` that trains a copy of a CLIP's text tower, or its last layers, and a copy of its logit scale."""

    may_be_sharded = True

    def __init__(self, clip: Clip, recipe: ThirdTowerRecipe) -> None:
        """Raises UsageError for a tower of an unknown kind, or with fewer layers than are to be trained."""
        self._clip = new_third_tower(clip, recipe.beta)
        self._towers = _Towers(self._clip, recipe)
        self.name = clip.name
        self.fingerprint: dict[str, Any] = {"weights_sha256": clip.weights_sha256}
        self.model: nn.Module = self._towers
        self.module: nn.Module = self._towers
        self.logit_scale: nn.Parameter | None = self._towers.logit_scale
        self.trainable = select_trainable(self._towers, self._towers.third, recipe.optim)
        # Hugging Face's towers may have a pooler that is not used.
        self.may_leave_parameters_unused = not self._towers.third.is_native

    @property
    def sees_padding(self) -> bool:
        """Whether texts must be padded to the model's full context length."""
        return self._towers.text.whole is not None

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes a checkpoint folder that loads as a `ThirdTowerClip`."""
        save_tuned(self._clip, self.model, self._towers.third, folder, changed)


class _Towers(nn.Module):
    """The frozen text tower T, the third tower G, and the logit scale of the losses."""

    def __init__(self, clip: ThirdTowerClip, recipe: ThirdTowerRecipe) -> None:
        super().__init__()
        self.text = text_tower(clip)
        self.third = clip.third
        self.logit_scale: nn.Parameter = copy.deepcopy(clip.model.logit_scale)
        self._loss, self._mini_batch_size = recipe.loss, recipe.optim.mini_batch_size

    def train(self, mode: bool = True) -> "_Towers":
        """Sets the mode of G only; T stays in evaluation mode, without dropout."""
        super().train(mode)
        self.text.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # Captions are much shorter than concatenated dialogues and need no backward pass. Their vectors take about a
        # tenth of a step, which does not justify a cache on disk that must be kept up to date.
        with torch.no_grad():
            (captions,) = self.text(batch.captions)
        dialogues = in_mini_batches(lambda texts: self.third(texts)[0], batch.dialogues, self._mini_batch_size)
        # Mixed precision is for the towers only; losses need full float32.
        with torch.autocast(dialogues.device.type, enabled=False):
            rows = (batch.image_vectors, captions, dialogues)
            image, caption, dialogue = (normalize(of.float(), dim=-1) for of in rows)
            return third_tower_loss(image, caption, dialogue, self.logit_scale.exp(), **self._loss.model_dump())
