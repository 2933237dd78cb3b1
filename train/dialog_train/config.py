"""Recipes: TOML files that describe a training. This module has the common settings; each system adds its own class."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dialog_gen.core.errors import UsageError
from dialog_gen.core.toml_files import shipped_toml
from dialog_train.losses.base import LOSSES

DialogueUse = Literal["rotate", "concatenate"]

_Beta = Annotated[float, Field(ge=0, lt=1)]


def _known_loss(name: str) -> str:
    try:
        LOSSES.get(name)
    except UsageError as error:
        # The error message of the recipe adds the value received.
        raise ValueError(str(error).removesuffix(".")) from None
    return name


LossName = Annotated[str, AfterValidator(_known_loss)]
"""The name of a registered image-text loss: see `dialog_train.losses.base`."""


class Settings(BaseModel):
    """A table of a recipe. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(Settings):
    """Location of the training data."""

    dialogues: str
    """The dataset that `dialog-gen run --out` wrote: a folder or an fsspec URL."""
    work: Path
    """Local folder for data that is derived once: `vectors` and `training_set`. Trainings of the same model can share
    it."""
    kept_only: bool = False
    """Leave out question-answer pairs that a quality gate marked: see `dialog-gen gate`."""
    crops: int = Field(default=0, ge=0)
    """Random crops of each image that are embedded in addition to the whole image; every epoch uses one view of each
    image."""


class PixelSettings(Settings):
    """Location of images with captions: either `dialogues` or `images`."""

    dialogues: str | None = None
    """The dataset that `dialog-gen run --out` wrote, with its images."""
    images: str | None = None
    """A source that `dialog-gen run --images` accepts, with captions: webdataset tars, image files with .txt files
    beside them, or Parquet."""
    work: Path
    """Local folder for data that is derived once: `pixel_set`. Trainings of the same input size and tokenizer can share
    it."""
    kept_only: bool = False
    """Leave out question-answer pairs that a quality gate marked, and images that have no pair left."""
    crop_area: float = Field(default=1.0, gt=0, le=1)
    """Smallest share of an image's area that a random crop takes, before it is resized; 1 uses the whole image."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dialogues is None) == (self.images is None):
            raise ValueError("data needs one of `dialogues` and `images`, not both")
        if self.kept_only and self.dialogues is None:
            raise ValueError("data.kept_only needs data.dialogues")
        return self


class OptimSettings(Settings):
    """AdamW, its schedule, and which parameters are trained."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Not applied to norms, biases, embeddings and the logit scale."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    """open_clip's value for CLIP with a ViT image tower."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up, before `schedule` applies."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate decreases to 0."""
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Number of steps; it takes precedence over `epochs`."""
    batch_size: int = Field(ge=2)
    """Images per step, over all processes. The negatives of a text are the images of all processes."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Maximum norm of the gradient; larger gradients are scaled down."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the towers; features, losses and weights are always float32."""
    train_last_layers: int | None = Field(default=None, ge=1)
    """Train only this many of the last transformer layers, with the final norm and projection. None: all."""
    logit_scale: Literal["learn", "fixed"] = "learn"
    """The logit scale starts from the model's value; if it is learned, it is limited to [1, 100] as in CLIP."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Also keep a moving average of the weights, written to OUT/model-ema."""


class LogSettings(Settings):
    """Where loss curves are written."""

    tensorboard: bool = True
    """Write to OUT/tensorboard."""
    wandb: bool = False
    """Log to Weights & Biases, with the account of the environment."""
    every_steps: int = Field(default=10, ge=1)
    """Each point is the mean over this many steps."""


class Recipe(Settings):
    """The settings that all trainings share."""

    model: str
    """open_clip's name of a model, `shapes-clip`, or a checkpoint folder."""
    pretrained: str | None = None
    """open_clip's tag of the weights, or a safetensors file. None if the model is a folder or `shapes-clip`."""
    allow_activation_mismatch: bool = False
    """Load weights that were trained with QuickGELU without it, as some published baselines did."""
    out: Path
    """Folder for checkpoints, logs and the trained model (OUT/model)."""
    optim: OptimSettings
    log: LogSettings = LogSettings()
    seed: int = Field(default=0, ge=0)
    """Seed of the order of the images, of dropout, and of everything else that is random."""
    save_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, from which `--resume auto` continues. None: only the trained model is written."""


class DialogueRecipe(Recipe):
    """Settings of trainings on image vectors and dialogues."""

    data: DataSettings
    dialogues: DialogueUse = "rotate"
    """"rotate": one question-answer pair per image and epoch, another one in the next epoch. "concatenate": all pairs
    joined."""


class PixelRecipe(Recipe):
    """Settings of trainings on pixels."""

    data: PixelSettings


class TowersRecipe(PixelRecipe):
    """Settings of trainings of an image tower and a text tower."""

    from_scratch: bool = False
    """Start from random weights, drawn from `seed`; `model` may be a JSON file with open_clip's model configuration."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.from_scratch and self.pretrained is not None:
            raise ValueError(f"from_scratch takes no weights: leave out pretrained = {self.pretrained!r}")
        return self


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name -> file."""
    return shipped_toml(Path(str(files("dialog_train"))) / "recipes", Path(__file__).parents[1] / "recipes")
