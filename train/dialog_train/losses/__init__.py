"""Objectives, one file each. Each returns named losses, already weighted, whose sum is the loss of a step."""

from dialog_train.losses.contrastive import contrastive_loss
from dialog_train.losses.draft import draft_loss
from dialog_train.losses.mmd import mmd2_rbf

__all__ = ["contrastive_loss", "draft_loss", "mmd2_rbf"]
