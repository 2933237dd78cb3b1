"""The objective of DRAFT-plus: captions, answers against foils, and a guard; see `DraftPlusRecipe` for its parts."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dialog_gen.clip.base import Clip
from dialog_gen.clip.third_tower.checkpoint import text_tower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_train.data.candidate_set import CandidateBatch
from dialog_train.data.pair_texts import CONJUNCTIONS
from dialog_train.losses.contrastive import contrastive_loss
from dialog_train.losses.distillation import similarity_distillation
from dialog_train.losses.foils import foil_loss
from dialog_train.losses.truths import truth_loss
from dialog_train.processes import gather_rows
from dialog_train.systems.draft_plus.config import DraftPlusRecipe
from dialog_train.text_tuning import Encode, TextTuning


class _Places(nn.Module):
    """The places of the candidates of `pair_texts.Candidates`, on the device where they are used.

    Each of the first three has rows of places to choose among, the right one first.
    """

    asserted: Tensor
    """(1, 1 + foils) int64: the right text and the foils."""
    denied: Tensor
    """(2, 2): the right text, its denial; the first foil's denial, the foil. (0, 2) without denials."""
    joined: Tensor
    """(1, 4): the conjunctions. (0, 4) without them."""
    true: Tensor
    """(G,) bool: of those that a statement alone makes."""
    false: Tensor
    """(G,) bool, likewise."""

    def __init__(self, recipe: DraftPlusRecipe) -> None:
        super().__init__()
        denials = 1 + recipe.foils
        joined = denials + (2 if recipe.loss.denials else 0)
        end = joined + (CONJUNCTIONS if recipe.loss.conjunctions else 0)
        places = torch.arange(end)
        rows = {
            "asserted": places[None, :denials],
            "denied": places.new_tensor([[0, denials], [denials + 1, 1]][: joined - denials]).reshape(-1, 2),
            "joined": places[joined:].reshape(-1, CONJUNCTIONS),
        }
        # A conjunction is half true if one of its parts is: among the others, it would be what is learned above all.
        right = torch.cat([rows["asserted"][:, 0], rows["denied"][:, 0]])
        true = torch.isin(places, right)
        for name, value in {**rows, "true": true, "false": ~true & (places < joined)}.items():
            self.register_buffer(name, value, persistent=False)


class PlusObjective(nn.Module):
    """Batches -> the named losses of the parts that the recipe has, already weighted.

    With a guard it holds a frozen copy of the text tower, made when the objective is.
    """

    _base_scale: Tensor

    def __init__(self, clip: Clip, recipe: DraftPlusRecipe) -> None:
        """Raises UsageError for a tower of an unknown kind."""
        super().__init__()
        self._loss, self._guard, self._places = recipe.loss, recipe.guard, _Places(recipe)
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

    def require_examples(self, batch: CandidateBatch) -> None:
        """Raises UsageError for a loss of choices that is to be learned and for which no image has texts."""
        parts = {
            "foils": (self._places.asserted, "another answer to its question"),
            "denials": (self._places.denied, "an answer that a rule can deny"),
            "conjunctions": (self._places.joined, "a second question, and wrong answers to both"),
        }
        for name, (among, needed) in parts.items():
            there = batch.there[:, among]
            if getattr(self._loss, name) and not (there[..., 0] & there[..., 1:].any(-1)).any():
                raise UsageError(
                    f"loss.{name} has nothing to learn from: of {count_of(len(there), 'image')}, none has {needed}. "
                    "Set it to 0, or give other dialogues."
                )

    def forward(self, batch: CandidateBatch, encode: Encode, logit_scale: Tensor) -> dict[str, Tensor]:
        """Implements `text_tuning.Objective`."""
        images, weights, places = batch.image_vectors, self._loss, self._places
        guards = self._guard.kind != "none" and self._guard.weight > 0
        held = [batch.captions, batch.recombined] if guards and self._guard.recombined else [batch.captions]
        candidates, captions, *others = encode(batch.candidates, *held)
        candidates = candidates[batch.which]  # (N, G, D)

        def contrastive(texts: Tensor) -> Tensor:
            return contrastive_loss(images, texts, logit_scale, direction=weights.direction)

        def choice(among: Tensor) -> Tensor:
            own = candidates[:, among].flatten(0, 1), logit_scale, batch.there[:, among].flatten(0, 1)
            return foil_loss(images.repeat_interleave(len(among), 0), *own)

        losses = dict[str, Tensor]()
        if weights.captions:
            losses["image_caption_loss"] = weights.captions * contrastive(captions)
        if weights.dialogues:
            losses["image_dialogue_loss"] = weights.dialogues * contrastive(candidates[:, 0])
        if weights.foils:
            losses["foil_loss"] = weights.foils * choice(places.asserted)
        if weights.denials:
            losses["denial_loss"] = weights.denials * choice(places.denied)
        if weights.conjunctions:
            losses["conjunction_loss"] = weights.conjunctions * choice(places.joined)
        if weights.truths:
            true, false = batch.there & places.true, batch.there & places.false
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
