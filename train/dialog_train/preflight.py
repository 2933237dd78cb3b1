"""What is wrong with a recipe, its folder or its data and can be told at once, before torch and models are loaded."""

from typing import Literal

from dialog_gen.clip.loader import check_nothing_lost
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.gates.summary import without_gates
from dialog_train.config import CHECKPOINTS, REPORT_FILE, Recipe


def check_start(recipe: Recipe, resume: Literal["never", "auto"]) -> None:
    """Checks what needs no model; the training checks it again, and everything else, where it needs it.

    Of a dataset it reads manifests only, and no more than it takes to count one batch.

    Raises UsageError for a folder that contains a training if `resume` is "never", a dataset that does not exist or has
    fewer images than a batch, `kept_only` for a dataset without gates, and a model with more towers than a CLIP's.
    """
    if resume == "never" and (
        (recipe.out / REPORT_FILE).exists() or any((recipe.out / CHECKPOINTS).glob("*.safetensors"))
    ):
        raise UsageError(f"{recipe.out} contains a training: continue it with --resume auto, or choose another out.")
    if not getattr(recipe, "from_scratch", False):
        check_nothing_lost(recipe.model)
    data = getattr(recipe, "data", None)
    dialogues = getattr(data, "dialogues", None)
    if isinstance(dialogues, str):
        _check_dialogues(dialogues, recipe.optim.batch_size, kept_only=bool(getattr(data, "kept_only", False)))


def _check_dialogues(location: str, batch_size: int, *, kept_only: bool) -> None:
    dataset = DatasetFolder.existing(location)
    images = 0
    for manifest in dataset.manifests():
        if kept_only and manifest.accepted and manifest.gates_sha256 is None:
            raise without_gates(location, manifest.shard, "data.kept_only")
        images += manifest.accepted
        if images >= batch_size:
            return
    raise UsageError(
        f"optim.batch_size = {batch_size} needs as many images, {location} has {images}: lower it, or generate more "
        "dialogues."
    )
