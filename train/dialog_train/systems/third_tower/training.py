"""CLIP-3Modal: trains a third tower, for dialogues, beside a CLIP's frozen towers (thesis, section 4.3)."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import save_clip
from dialog_gen.clip.third_tower.checkpoint import ThirdTowerClip, new_third_tower, text_tower
from dialog_train.data.training_set import Batch
from dialog_train.losses import third_tower_loss
from dialog_train.optim import select_trainable
from dialog_train.system import gather_rows
from dialog_train.systems.third_tower.config import ThirdTowerRecipe


class ThirdTower:
    """A `System` that trains a copy of a CLIP's text tower, or the last layers of it, and a copy of its logit scale."""

    def __init__(self, clip: Clip, recipe: ThirdTowerRecipe) -> None:
        """Raises UsageError for a tower of an unknown kind, or one with fewer layers than are to be trained."""
        self._clip = new_third_tower(clip, recipe.beta)
        self._towers = _Towers(self._clip, recipe)
        self.name = clip.name
        self.fingerprint: dict[str, Any] = {"weights_sha256": clip.weights_sha256}
        self.model: nn.Module = self._towers
        self.module: nn.Module = self._towers
        self.logit_scale: nn.Parameter | None = self._towers.logit_scale
        self.trainable = select_trainable(self._towers, self._towers.third, recipe.optim)
        # Hugging Face's towers may have a pooler that goes unused.
        self.may_leave_parameters_unused = not self._towers.third.is_native

    @property
    def sees_padding(self) -> bool:
        """Whether texts must have the model's full context length."""
        return self._towers.text.whole is not None

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """A checkpoint folder that loads as a `ThirdTowerClip`."""
        save_clip(self._clip, folder, changed)


class _Towers(nn.Module):
    """The frozen text tower T, the third tower G, and the temperature of the losses."""

    def __init__(self, clip: ThirdTowerClip, recipe: ThirdTowerRecipe) -> None:
        super().__init__()
        self.text = text_tower(clip)
        self.third = clip.third
        self.logit_scale: nn.Parameter = copy.deepcopy(clip.model.logit_scale)
        self._loss = recipe.loss

    def train(self, mode: bool = True) -> "_Towers":
        """Sets the mode of G: T has no dropout in training either."""
        super().train(mode)
        self.text.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # Captions have a fraction of the tokens of concatenated dialogues, and need no backward pass: their vectors
        # cost about a tenth of a step, and a cache of them on disk would be one more thing to keep in order.
        with torch.no_grad():
            captions = self.text(batch.caption_tokens)
        dialogues = self.third(batch.dialogue_tokens)
        # Accelerate's autocast is meant for the towers; losses need all of float32.
        with torch.autocast(dialogues.device.type, enabled=False):
            rows = (batch.image_vectors, captions, dialogues)
            image, caption, dialogue = (gather_rows(normalize(of.float(), dim=-1)) for of in rows)
            return third_tower_loss(image, caption, dialogue, self.logit_scale.exp(), **self._loss.model_dump())
