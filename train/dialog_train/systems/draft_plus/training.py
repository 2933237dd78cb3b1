"""The objective of DRAFT-plus: captions, answers against foils, and a guard; see `DraftPlusRecipe` for its parts."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dialog_gen.clip.base import Clip
from dialog_gen.clip.third_tower.checkpoint import text_tower
from dialog_train.data.candidate_set import CandidateBatch
from dialog_train.losses.contrastive import contrastive_loss
from dialog_train.losses.distillation import similarity_distillation
from dialog_train.losses.foils import foil_loss
from dialog_train.losses.truths import truth_loss
from dialog_train.processes import gather_rows
from dialog_train.systems.draft_plus.config import DraftPlusRecipe
from dialog_train.text_tuning import Encode, TextTuning


class PlusObjective(nn.Module):
    """Batches -> the named losses of the parts that the recipe has, already weighted.

    With a guard it holds a frozen copy of the text tower, made when the objective is.
    """

    _base_scale: Tensor

    def __init__(self, clip: Clip, recipe: DraftPlusRecipe) -> None:
        """Raises UsageError for a tower of an unknown kind."""
        super().__init__()
        self._loss, self._guard, self._foils = recipe.loss, recipe.guard, recipe.foils
        self.base: Any = None
        if recipe.guard.kind != "none":
            self.base = copy.deepcopy(text_tower(clip)).requires_grad_(False).eval()
            self.register_buffer("_base_scale", clip.model.logit_scale.detach().exp(), persistent=False)

    def train(self, mode: bool = True) -> "PlusObjective":
        """The untuned tower stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.base is not None:
            self.base.eval()
        return self

    def forward(self, batch: CandidateBatch, encode: Encode, logit_scale: Tensor) -> dict[str, Tensor]:
        """Implements `text_tuning.Objective`."""
        images, weights = batch.image_vectors, self._loss
        guards = self._guard.kind != "none" and self._guard.weight > 0
        held = [batch.captions, batch.recombined] if guards and self._guard.recombined else [batch.captions]
        candidates, captions, *others = encode(batch.candidates, *held)
        candidates = candidates[batch.which]  # (N, G, D)

        def contrastive(texts: Tensor) -> Tensor:
            return contrastive_loss(images, texts, logit_scale, direction=weights.direction)

        losses = dict[str, Tensor]()
        if weights.captions:
            losses["image_caption_loss"] = weights.captions * contrastive(captions)
        if weights.dialogues:
            losses["image_dialogue_loss"] = weights.dialogues * contrastive(candidates[:, 0])
        if weights.foils:
            asserted = slice(1 + self._foils)
            own = candidates[:, asserted], logit_scale, batch.there[:, asserted]
            losses["foil_loss"] = weights.foils * foil_loss(images, *own)
        if weights.denials:
            # Right text, its denial; the foil's denial, the foil.
            pairs = torch.tensor([[0, 1 + self._foils], [2 + self._foils, 1]], device=images.device)
            twice = images.repeat_interleave(2, 0), candidates[:, pairs].flatten(0, 1), logit_scale
            losses["denial_loss"] = weights.denials * foil_loss(*twice, batch.there[:, pairs].flatten(0, 1))
        if weights.truths:
            true, false = batch.there.clone(), batch.there.clone()
            # The right text and the denial of the first foil are true.
            places = [0] if candidates.shape[1] == 1 + self._foils else [0, 2 + self._foils]
            true[:, [place for place in range(true.shape[1]) if place not in places]] = False
            false[:, places] = False
            losses["truth_loss"] = weights.truths * truth_loss(images, candidates, logit_scale, true, false)
        if guards:
            with torch.no_grad():
                wanted = encode(*held, tower=self.base)
            losses["guard_loss"] = self._guard.weight * self._moved(
                images, torch.cat([captions, *others]), torch.cat(wanted)
            )
        return losses

    def _moved(self, images: Tensor, texts: Tensor, base: Tensor) -> Tensor:
        if self._guard.kind == "similarities":
            return similarity_distillation(images, texts, base, self._base_scale)
        return gather_rows(1 - (texts * base).sum(1)).mean()


def freeze_embeddings(system: TextTuning) -> None:
    """Leaves the embeddings of tokens out of what is trained."""
    tables = {id(module.weight) for module in system.tower.modules() if isinstance(module, nn.Embedding)}
    for name in [name for name, parameter in system.trainable.items() if id(parameter) in tables]:
        system.trainable.pop(name).requires_grad_(False)
