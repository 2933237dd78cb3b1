"""Recipes: what a training is, as TOML files. One model an objective; what all of them share is in `Recipe`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dialog_gen.toml_files import read_toml_model
from dialog_train.losses.contrastive import Direction
from dialog_train.losses.draft import MmdOver


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(_Settings):
    """Where the training data is."""

    dialogues: str
    """The dataset that `dialog-gen run --out` wrote: a folder or an fsspec URL."""
    work: Path
    """Local folder for what is made of it once: `vectors` and `training_set`. Trainings of one model share it."""
    kept_only: bool = False
    """Leave out question-answer pairs that a quality gate marked: see `dialog-gen gate`."""
    crops: int = Field(default=0, ge=0)
    """Random crops of each image that are encoded beside the whole one; every epoch takes one view of each image."""


class DraftLossSettings(_Settings):
    """The options of `dialog_train.losses.draft_loss`, which says what they do."""

    a: float = Field(default=0.5, ge=0, le=1)
    """Weight of the dialogues; captions weigh 1 - a."""
    direction: Direction = "symmetric"
    """Softmax over texts, over images ("t2i", the thesis' equation), or the mean of both."""
    mmd_weight: float = Field(default=1.0, ge=0)
    """Weight of the discrepancy between the similarity distributions; 0 leaves it out."""
    mmd_sigma: float | tuple[float, ...] | Literal["median"] = 0.2
    """Width of the kernel on the scale of cosines; several are averaged."""
    mmd_over: MmdOver = "scalars"
    """What a sample of the two distributions is."""
    mmd_root: bool = False
    """The root of MMD^2, as printed in the thesis."""
    mmd_detach_captions: bool = False
    """Dialogues are pulled towards captions, never captions towards dialogues."""


class OptimSettings(_Settings):
    """AdamW, its schedule, and what is trained."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Not for norms, biases, embeddings and the logit scale."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    """open_clip's value for CLIP with a ViT image tower."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up; a cosine to 0 follows."""
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """So many steps, whatever `epochs` says."""
    batch_size: int = Field(ge=2)
    """Images a step over all processes: every text has the images of all of them as negatives."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Of the text tower; features, losses and weights are float32 always."""
    train_last_layers: int | None = Field(default=None, ge=1)
    """Train only so many of the last transformer layers, with the final norm and projection. None: all."""
    logit_scale: Literal["learn", "fixed"] = "learn"
    """Starts from the model's own; learned, it stays within [1, 100] as in CLIP."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep a moving average of the weights too, written to OUT/model-ema."""


class LogSettings(_Settings):
    """Where loss curves go."""

    tensorboard: bool = True
    """To OUT/tensorboard."""
    wandb: bool = False
    """To Weights & Biases, under the account of the environment."""
    every_steps: int = Field(default=10, ge=1)
    """Each point is the mean of so many steps."""


class Recipe(_Settings):
    """What every training needs, whatever its objective."""

    model: str
    """open_clip's name of a model, `shapes-clip`, or a checkpoint folder."""
    pretrained: str | None = None
    """open_clip's tag of the weights, or a safetensors file. None where the model is a folder or `shapes-clip`."""
    allow_activation_mismatch: bool = False
    """Load weights trained with QuickGELU without it, as some published baselines did."""
    out: Path
    """Folder for checkpoints, logs and the trained model (OUT/model)."""
    data: DataSettings
    optim: OptimSettings
    log: LogSettings = LogSettings()
    seed: int = Field(default=0, ge=0)
    """Of the order of the images and of dropout."""
    save_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints that `--resume auto` goes on from. None: only the trained model is written."""
    dialogues: Literal["rotate", "concatenate"] = "rotate"
    """One question-answer pair of an image an epoch, another in the next; or all in one text."""


class DraftRecipe(Recipe):
    """DRAFT: captions and dialogues against the images of a frozen tower."""

    loss: DraftLossSettings = DraftLossSettings()
    caption_only: bool = False
    """The control experiment: the dialogue stream gets the captions, all else is the same."""


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def load_recipe(path: Path, overrides: Iterable[str] = (), kind: type[AnyRecipe] = DraftRecipe) -> AnyRecipe:
    """The recipe that a TOML file holds, changed by `overrides` of the form "optim.lr=1e-4".

    Raises UsageError for a file that cannot be read, an unknown key (did you mean ...) or a value that does not fit.
    """
    return read_toml_model(path, kind, "recipe", overrides)
