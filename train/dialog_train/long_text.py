"""Extends the context of a text tower by stretching its positional embedding (Long-CLIP)."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.tensors import sha256_of_weights
from dialog_train.config import LongTextRecipe

KEPT_POSITIONS = 20
"""Number of positions that are not changed. Most captions are not longer, so only these positions are well trained
(arXiv 2403.15378, section 3.1)."""


def stretch_context(clip: Clip, context_length: int) -> Clip:
    """A copy of a model that reads `context_length` tokens; the model itself if it already does.

    Texts of up to 20 tokens keep their vectors. Raises UsageError if `context_length` is lower than the model's, and
    for a text tower that cannot be stretched: one that sees the padding, one from Hugging Face, or one whose positions
    are all kept because there are so few.
    """
    text: Any = getattr(clip.model, "text", clip.model)
    now: int = text.context_length
    if context_length == now:
        return clip
    if context_length < now:
        raise UsageError(f"context_length = {context_length}: {clip.name} reads {now} tokens, and cannot read fewer.")
    tower = TextTower(clip.model)
    if not tower.is_native or tower.whole is not None or now <= KEPT_POSITIONS:
        raise UsageError(
            f"context_length = {context_length}: the text tower of {clip.name} cannot be stretched. That needs causal "
            f"attention, pooling at the end-of-text token, and more than {KEPT_POSITIONS} positions."
        )
    model = copy.deepcopy(clip.model)
    text = getattr(model, "text", model)
    text.positional_embedding = nn.Parameter(stretch_positions(text.positional_embedding.detach(), context_length))
    text.attn_mask = torch.full((context_length, context_length), -torch.inf).triu(1)
    model.context_length = text.context_length = context_length
    return replace(
        clip,
        model=model,
        tokenizer=with_context(clip.tokenizer, context_length),
        config={**clip.config, "text_cfg": {**clip.config["text_cfg"], "context_length": context_length}},
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


def longer(clip: Clip, recipe: LongTextRecipe) -> Clip:
    """`stretch_context` to the context length of a recipe."""
    return clip if recipe.context_length is None else stretch_context(clip, recipe.context_length)


def reading(clip: Clip, stretched: Clip) -> Clip:
    """`clip` with the tokenizer of its `stretched` copy: its image vectors and the longer texts make a training set."""
    return replace(clip, tokenizer=stretched.tokenizer)


def stretch_positions(embedding: Tensor, length: int, *, kept: int = KEPT_POSITIONS) -> Tensor:
    """(L, width) -> (length, width): keeps the first `kept` positions and stretches the others over the rest.

    Position p >= kept is the old position kept + (p - kept) (L - kept) / (length - kept), interpolated linearly between
    two old positions and extrapolated beyond the last one. 77 -> 248 is Long-CLIP's factor of 4.
    """
    old = len(embedding)
    places = torch.arange(length, dtype=torch.float64)
    places[kept:] = kept + (places[kept:] - kept) * (old - kept) / (length - kept)
    below = places.long().clamp(max=old - 2)
    share = (places - below)[:, None].to(embedding)
    # The result is exact if the place is an old position.
    return embedding[below] * (1 - share) + embedding[below + 1] * share


def with_context(tokenizer: Any, context_length: int) -> Any:
    """A copy of an open_clip tokenizer that truncates texts to `context_length` tokens."""
    longer = copy.copy(tokenizer)
    longer.context_length = context_length
    return longer
