"""DRAFT: tunes a CLIP's text tower on captions and dialogues, against the vectors of its frozen image tower."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dialog_train.config import DialogueRecipe, Settings
from dialog_train.losses.base import Direction, MmdOver
from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem

if TYPE_CHECKING:
    from torch import Tensor

    from dialog_train.data.training_set import Batch
    from dialog_train.loop import FitResult
    from dialog_train.text_tuning import Encode, Objective

_Positive = Annotated[float, Field(gt=0)]


class DraftLossSettings(Settings):
    """The options of `dialog_train.losses.draft_loss`, which says what they do."""

    a: float = Field(default=0.5, ge=0, le=1)
    """Weight of the dialogues; captions weigh 1 - a."""
    direction: Direction = "symmetric"
    """Softmax over texts, over images ("t2i", the thesis' equation), or the mean of both."""
    mmd_weight: float = Field(default=1.0, ge=0)
    """Weight of the discrepancy between the similarity distributions; 0 leaves it out."""
    mmd_sigma: _Positive | Annotated[tuple[_Positive, ...], Field(min_length=1)] | Literal["median"] = 0.2
    """Width of the kernel on the scale of cosines, for "rows" sqrt(batch_size) times that; several are averaged."""
    mmd_over: MmdOver = "scalars"
    """What a sample of the two distributions is."""
    mmd_root: bool = False
    """The root of MMD^2, as printed in the thesis."""
    mmd_detach_captions: bool = False
    """Dialogues are pulled towards captions, never captions towards dialogues."""


class DraftRecipe(DialogueRecipe):
    """DRAFT: captions and dialogues against the images of a frozen tower."""

    loss: DraftLossSettings = DraftLossSettings()
    caption_only: bool = False
    """The control experiment: the dialogue stream gets the captions, all else is the same."""


def draft_objective(loss: DraftLossSettings, *, caption_only: bool = False) -> "Objective":
    """DRAFT's losses of a batch; with `caption_only`, captions take the place of the dialogues."""
    from dialog_train.losses import draft_loss
    from dialog_train.system import gather_rows

    def objective(batch: "Batch", encode: "Encode", logit_scale: "Tensor") -> "dict[str, Tensor]":
        images = gather_rows(batch.image_vectors)
        captions = gather_rows(encode(batch.caption_tokens))
        dialogues = captions if caption_only else gather_rows(encode(batch.dialogue_tokens))
        return draft_loss(images, captions, dialogues, logit_scale, **loss.model_dump())

    return objective


def train(recipe: DraftRecipe, run: Run) -> "FitResult":
    """Trains; with the switch "export-hf" it also writes OUT/hf.

    Raises UsageError for a model that transformers' CLIPModel cannot express, before the training.
    """
    from dialog_gen.clip.loader import load_clip
    from dialog_train.data.prepare import prepare_training_set
    from dialog_train.hf_export import check_export_hf, export_hf
    from dialog_train.loop import MODEL_FOLDER
    from dialog_train.text_tuning import PairBatches, TextTuning

    clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
    if "export-hf" in run.switches:
        check_export_hf(clip)
    training_set = prepare_training_set(recipe, clip, run.accelerator, run.on_progress)
    system = TextTuning(clip, draft_objective(recipe.loss, caption_only=recipe.caption_only), recipe.optim)
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
