"""Losses, one file each. The functions are imported on first use, so that the registry in `base` does not need torch.

An objective returns named losses, already weighted; their sum is the loss of a step.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialog_train.losses.contrastive import contrastive_loss
    from dialog_train.losses.draft import draft_loss
    from dialog_train.losses.focal import focal_contrastive_loss
    from dialog_train.losses.mmd import mmd2_rbf
    from dialog_train.losses.next_token import next_token_loss, next_token_sums
    from dialog_train.losses.siglip import siglip_loss
    from dialog_train.losses.third_tower import third_tower_loss

_MODULES = {
    "contrastive_loss": "contrastive",
    "draft_loss": "draft",
    "focal_contrastive_loss": "focal",
    "mmd2_rbf": "mmd",
    "next_token_loss": "next_token",
    "next_token_sums": "next_token",
    "siglip_loss": "siglip",
    "third_tower_loss": "third_tower",
}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
