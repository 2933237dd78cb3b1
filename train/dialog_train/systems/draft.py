"""DRAFT: tunes a CLIP's text tower on captions and dialogues, with image vectors of its frozen image tower."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dialog_train.config import LongTextRecipe, Settings
from dialog_train.losses.base import Direction, MmdOver
from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem

if TYPE_CHECKING:
    from torch import Tensor

    from dialog_train.data.training_set import Batch
    from dialog_train.loop import FitResult
    from dialog_train.text_tuning import Encode, Objective

_Sigma = Annotated[float, Field(ge=1e-3)]  # the time of a step grows with 1 / sigma


class DraftLossSettings(Settings):
    """The options of `dialog_train.losses.draft_loss`, which documents them."""

    a: float = Field(default=0.5, ge=0, le=1)
    """Weight of the dialogues; captions weigh 1 - a."""
    direction: Direction = "symmetric"
    """Softmax over texts ("i2t"), over images ("t2i", the thesis' equation), or the mean of both ("symmetric")."""
    mmd_weight: float = Field(default=1.0, ge=0)
    """Weight of the discrepancy (MMD) between the similarity distributions; 0 disables it."""
    mmd_sigma: _Sigma | Annotated[tuple[_Sigma, ...], Field(min_length=1)] | Literal["median"] = 0.2
    """Width of the kernel, in units of cosine similarity; "rows" needs about sqrt(batch_size) times as much. The
    results of several widths are averaged."""
    mmd_over: MmdOver = "scalars"
    """The samples of the two distributions: see `draft_loss`."""
    mmd_root: bool = False
    """Use the square root of MMD^2, as printed in the thesis."""
    mmd_detach_captions: bool = False
    """The MMD term moves dialogues towards captions, but not captions towards dialogues."""


class DraftRecipe(LongTextRecipe):
    """DRAFT: aligns captions and dialogues with the images of a frozen tower."""

    loss: DraftLossSettings = DraftLossSettings()
    caption_only: bool = False
    """The control experiment: captions replace the dialogues, everything else stays the same."""


def draft_objective(loss: DraftLossSettings, *, caption_only: bool = False) -> "Objective":
    """The objective of DRAFT; with `caption_only`, captions replace the dialogues."""
    from dialog_train.losses import draft_loss

    def captions_only(batch: "Batch", encode: "Encode", logit_scale: "Tensor") -> "dict[str, Tensor]":
        (captions,) = encode(batch.captions)
        # Captions have the weight of both, a + (1 - a); no discrepancy is left.
        settings = loss.model_copy(update={"mmd_weight": 0}).model_dump()
        parts = draft_loss(batch.image_vectors, captions, captions, logit_scale, **settings)
        return {"image_caption_loss": parts["image_caption_loss"] + parts["image_dialogue_loss"]}

    def objective(batch: "Batch", encode: "Encode", logit_scale: "Tensor") -> "dict[str, Tensor]":
        captions, dialogues = encode(batch.captions, batch.dialogues)
        return draft_loss(batch.image_vectors, captions, dialogues, logit_scale, **loss.model_dump())

    return captions_only if caption_only else objective


def train(recipe: DraftRecipe, run: Run) -> "FitResult":
    """Trains the text tower; with the switch "export-hf" it also writes OUT/hf.

    Raises UsageError before the training if "export-hf" is set and transformers' CLIPModel cannot express the model.
    """
    from dialog_gen.clip.loader import load_clip
    from dialog_train.data.prepare import prepare_training_set
    from dialog_train.hf_export import check_export_hf, export_hf
    from dialog_train.long_text import longer, reading
    from dialog_train.loop import MODEL_FOLDER
    from dialog_train.text_tuning import PairBatches, TextTuning

    clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
    stretched = longer(clip, recipe)
    if "export-hf" in run.switches:
        check_export_hf(stretched)
    training_set = prepare_training_set(recipe, reading(clip, stretched), run.accelerator, run.on_progress)
    system = TextTuning(stretched, draft_objective(recipe.loss, caption_only=recipe.caption_only), recipe.optim)
    result = run.fit(recipe, system, PairBatches(recipe, training_set, full_length=system.sees_padding))
    if "export-hf" in run.switches and run.accelerator.is_main_process:
        export_hf(load_clip(str(recipe.out / MODEL_FOLDER)), recipe.out / "hf")
    return result


SYSTEMS.register("draft")(
    TrainingSystem(
        description="DRAFT: a text tower on dialogues, against frozen image vectors.",
        recipe=DraftRecipe,
        train=train,
        switches={"export-hf": "Also write OUT/hf for transformers' CLIPModel."},
    )
)
