"""Objectives, one file each. Each returns named losses, already weighted, whose sum is the loss of a step."""

from dialog_train.losses.contrastive import contrastive_loss
from dialog_train.losses.draft import draft_loss
from dialog_train.losses.focal import focal_contrastive_loss
from dialog_train.losses.mmd import mmd2_rbf
from dialog_train.losses.next_token import next_token_loss, next_token_sums
from dialog_train.losses.siglip import siglip_loss
from dialog_train.losses.third_tower import third_tower_loss

__all__ = [
    "contrastive_loss",
    "draft_loss",
    "focal_contrastive_loss",
    "mmd2_rbf",
    "next_token_loss",
    "next_token_sums",
    "siglip_loss",
    "third_tower_loss",
]
