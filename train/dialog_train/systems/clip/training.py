"""The system of contrastive training of an image tower and a text tower on pixels. Its data is `PixelBatches`."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip, new_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_train.config import TowersRecipe
from dialog_train.data.pixel_set import Normalization, PixelBatch
from dialog_train.lora import save_tuned
from dialog_train.losses.base import LOSSES, PairLoss
from dialog_train.mini_batches import in_mini_batches
from dialog_train.optim import select_trainable
from dialog_train.systems.clip.config import ClipRecipe


def starting_point(recipe: TowersRecipe) -> Clip:
    """Loads or creates the initial model of a recipe. Raises UsageError as `load_clip` and `new_clip` do."""
    if recipe.from_scratch:
        return new_clip(recipe.model, recipe.seed)
    return load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)


class ClipTraining:
    """A `System` that trains the towers of `clip` in place, by the loss that the recipe names."""

    may_be_sharded = True

    def __init__(self, clip: Clip, recipe: ClipRecipe) -> None:
        """Raises UsageError for towers of an unknown kind, and for settings that cannot be combined."""
        self.fingerprint: dict[str, Any] = {"weights_sha256": clip.weights_sha256}
        loss = LOSSES.get(recipe.loss, where="loss")
        self.clip = _with_bias(clip, loss)
        self.name = clip.name
        model: Any = clip.model
        try:
            self.tower = TextTower(model)
        except TypeError as error:
            raise UsageError(f"{clip.name} cannot be trained: {error}.") from None
        if clip.trained_by is not None:
            raise UsageError(f"{clip.name} is a {clip.kind}: {clip.trained_by} trains it.")
        if recipe.lock_image:
            select_trainable(model, self.tower, recipe.optim)
        elif recipe.optim.partial:
            raise UsageError(f"{recipe.optim.partial} is for the text tower: set lock_image = true, or leave it out.")
        elif any(isinstance(module, nn.BatchNorm2d) for module in model.visual.modules()):
            raise UsageError(
                f"{clip.name} has batch norm, whose statistics would differ between processes: take an image tower "
                "without it, or set lock_image = true."
            )
        model.logit_scale.requires_grad_(recipe.optim.logit_scale == "learn")
        if model.logit_bias is not None:
            model.logit_bias.requires_grad_(loss.init_logit_bias is not None)
        self.model: nn.Module = model
        self.logit_scale: nn.Parameter | None = model.logit_scale
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.module: nn.Module = _Towers(self.clip, self.tower, loss, recipe)
        # Hugging Face's towers may have a pooler that is not used.
        self.may_leave_parameters_unused = not self.tower.is_native

    @property
    def sees_padding(self) -> bool:
        """Whether texts must be padded to the model's full context length."""
        return self.tower.whole is not None

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes a checkpoint folder."""
        save_tuned(self.clip, self.model, self.tower, folder, changed)


class _Towers(nn.Module):
    def __init__(self, clip: Clip, tower: TextTower, loss: PairLoss, recipe: ClipRecipe) -> None:
        super().__init__()
        self.visual, self.text = clip.model.visual, tower
        self.normalization = Normalization(clip.preprocess_config)
        self.logit_scale: nn.Parameter = clip.model.logit_scale
        self.logit_bias: nn.Parameter | None = clip.model.logit_bias if loss.init_logit_bias is not None else None
        self._loss, self._options = loss, loss.options_of(recipe)
        self._locked, self._mini_batch_size = recipe.lock_image, recipe.optim.mini_batch_size

    def train(self, mode: bool = True) -> "_Towers":
        """Sets the mode of the trained towers; a locked image tower stays in evaluation mode."""
        super().train(mode)
        self.visual.train(mode and not self._locked)
        return self

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        with torch.no_grad() if self._locked else nullcontext():
            images = in_mini_batches(self._images, batch.pixels, self._mini_batch_size)
        texts = in_mini_batches(lambda of: self.text(of)[0], batch.captions, self._mini_batch_size)
        # Mixed precision is for the towers only; losses need full float32.
        with torch.autocast(texts.device.type, enabled=False):
            images, texts = (normalize(rows.float(), dim=-1) for rows in (images, texts))
            bias = {} if self.logit_bias is None else {"logit_bias": self.logit_bias}
            value = self._loss(images, texts, self.logit_scale.exp(), **bias, **self._options)
            return {self._loss.label: value}

    def _images(self, pixels: Tensor) -> Tensor:
        return self.visual(self.normalization(pixels))


def _with_bias(clip: Clip, loss: PairLoss) -> Clip:
    """Adds a logit bias to a model if the loss needs one, and initialises bias and scale as the loss requires."""
    model = clip.model
    if loss.init_logit_bias is None or model.logit_bias is not None:
        return clip
    start = {"init_logit_bias": loss.init_logit_bias}
    model.logit_bias = nn.Parameter(torch.full_like(model.logit_scale, loss.init_logit_bias))
    if loss.init_logit_scale is not None:
        start["init_logit_scale"] = loss.init_logit_scale
        model.logit_scale.data.fill_(loss.init_logit_scale)
    return replace(clip, config={**clip.config, **start})
