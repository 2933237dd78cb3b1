"""Losses, one file each. The functions are imported on first use, so that the registry in `base` does not need torch.

An objective returns named losses, already weighted; their sum is the loss of a step.
"""

from typing import TYPE_CHECKING

from dialog_gen.core.lazy import lazy_names

if TYPE_CHECKING:
    from dialog_train.losses.contrastive import contrastive_loss as contrastive_loss
    from dialog_train.losses.draft import draft_loss as draft_loss
    from dialog_train.losses.focal import focal_contrastive_loss as focal_contrastive_loss
    from dialog_train.losses.mmd import mmd2_rbf as mmd2_rbf
    from dialog_train.losses.next_token import next_token_loss as next_token_loss
    from dialog_train.losses.next_token import next_token_sums as next_token_sums
    from dialog_train.losses.siglip import siglip_loss as siglip_loss
    from dialog_train.losses.third_tower import third_tower_loss as third_tower_loss

_LOSSES: dict[str, str] = {
    "contrastive_loss": "dialog_train.losses.contrastive",
    "draft_loss": "dialog_train.losses.draft",
    "focal_contrastive_loss": "dialog_train.losses.focal",
    "mmd2_rbf": "dialog_train.losses.mmd",
    "next_token_loss": "dialog_train.losses.next_token",
    "next_token_sums": "dialog_train.losses.next_token",
    "siglip_loss": "dialog_train.losses.siglip",
    "third_tower_loss": "dialog_train.losses.third_tower",
}

__all__ = [*_LOSSES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _LOSSES)
