"""Objectives of text-tower tuning: what `text_tuning.TextTuning` makes of a batch."""

from torch import Tensor

from dialog_train.config import DraftLossSettings
from dialog_train.data.training_set import Batch
from dialog_train.losses import draft_loss
from dialog_train.system import gather_rows
from dialog_train.systems.text_tuning import Encode, Objective


def draft_objective(loss: DraftLossSettings, *, caption_only: bool = False) -> Objective:
    """DRAFT's losses; with `caption_only`, captions stand in for the dialogues."""

    def objective(batch: Batch, encode: Encode, logit_scale: Tensor) -> dict[str, Tensor]:
        images = gather_rows(batch.image_vectors)
        captions = gather_rows(encode(batch.caption_tokens))
        dialogues = captions if caption_only else gather_rows(encode(batch.dialogue_tokens))
        return draft_loss(images, captions, dialogues, logit_scale, **loss.model_dump())

    return objective
