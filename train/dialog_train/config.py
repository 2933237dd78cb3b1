"""Recipes: what a training is, as TOML files. Here is what systems share; each system has a model of its own."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dialog_gen.core.errors import UsageError
from dialog_train.losses.base import LOSSES

DialogueUse = Literal["rotate", "concatenate"]

_Beta = Annotated[float, Field(ge=0, lt=1)]


def _known_loss(name: str) -> str:
    try:
        LOSSES.get(name)
    except UsageError as error:
        # The recipe's own message ends with what was given.
        raise ValueError(str(error).removesuffix(".")) from None
    return name


LossName = Annotated[str, AfterValidator(_known_loss)]
"""The name of a registered loss of images against their texts: see `dialog_train.losses.base`."""


class Settings(BaseModel):
    """A table of a recipe: keys that are not its own are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(Settings):
    """Where the training data is."""

    dialogues: str
    """The dataset that `dialog-gen run --out` wrote: a folder or an fsspec URL."""
    work: Path
    """Local folder for data that is derived once: `vectors` and `training_set`. Trainings of one model share it."""
    kept_only: bool = False
    """Leave out question-answer pairs that a quality gate marked: see `dialog-gen gate`."""
    crops: int = Field(default=0, ge=0)
    """Random crops of each image that are encoded beside the whole one; every epoch takes one view of each image."""


class PixelSettings(Settings):
    """Where images with captions are: one of `dialogues` and `images`."""

    dialogues: str | None = None
    """The dataset that `dialog-gen run --out` wrote, with its images."""
    images: str | None = None
    """What `dialog-gen run --images` takes, with captions: webdataset tars, image files with .txt beside, Parquet."""
    work: Path
    """Local folder for data that is derived once: `pixel_set`. Trainings of one input size and tokenizer share it."""
    kept_only: bool = False
    """Leave out question-answer pairs that a quality gate marked, and images that keep none."""
    crop_area: float = Field(default=1.0, gt=0, le=1)
    """Random crops of at least this share of an image's area, resized; 1 takes the whole image."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dialogues is None) == (self.images is None):
            raise ValueError("data needs one of `dialogues` and `images`, not both")
        if self.kept_only and self.dialogues is None:
            raise ValueError("data.kept_only needs data.dialogues")
        return self


class OptimSettings(Settings):
    """AdamW, its schedule, and what is trained."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Not for norms, biases, embeddings and the logit scale."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    """open_clip's value for CLIP with a ViT image tower."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up; `schedule` follows."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate goes to 0."""
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Number of steps; it takes precedence over `epochs`."""
    batch_size: int = Field(ge=2)
    """Images a step over all processes: every text has the images of all of them as negatives."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Of the text tower; features, losses and weights are float32 always."""
    train_last_layers: int | None = Field(default=None, ge=1)
    """Train only this many of the last transformer layers, with the final norm and projection. None: all."""
    logit_scale: Literal["learn", "fixed"] = "learn"
    """Starts from the model's own; learned, it stays within [1, 100] as in CLIP."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep a moving average of the weights too, written to OUT/model-ema."""


class LogSettings(Settings):
    """Where loss curves go."""

    tensorboard: bool = True
    """To OUT/tensorboard."""
    wandb: bool = False
    """To Weights & Biases, under the account of the environment."""
    every_steps: int = Field(default=10, ge=1)
    """Each point is the mean over this many steps."""


class Recipe(Settings):
    """What every training needs, whatever its objective and its data."""

    model: str
    """open_clip's name of a model, `shapes-clip`, or a checkpoint folder."""
    pretrained: str | None = None
    """open_clip's tag of the weights, or a safetensors file. None where the model is a folder or `shapes-clip`."""
    allow_activation_mismatch: bool = False
    """Load weights trained with QuickGELU without it, as some published baselines did."""
    out: Path
    """Folder for checkpoints, logs and the trained model (OUT/model)."""
    optim: OptimSettings
    log: LogSettings = LogSettings()
    seed: int = Field(default=0, ge=0)
    """For the order of the images, dropout, and everything else that is random."""
    save_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints that `--resume auto` goes on from. None: only the trained model is written."""


class DialogueRecipe(Recipe):
    """Trainings on image vectors and dialogues."""

    data: DataSettings
    dialogues: DialogueUse = "rotate"
    """One question-answer pair of an image an epoch, another in the next; or all in one text."""


class PixelRecipe(Recipe):
    """Trainings that see pixels."""

    data: PixelSettings


class TowersRecipe(PixelRecipe):
    """Trainings of an image tower and a text tower."""

    from_scratch: bool = False
    """Start from random weights, drawn from `seed`; `model` may be a JSON file of open_clip's model configuration."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.from_scratch and self.pretrained is not None:
            raise ValueError(f"from_scratch takes no weights: leave out pretrained = {self.pretrained!r}")
        return self


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    folder = Path(str(files("dialog_train"))) / "recipes"
    if not folder.is_dir():
        # An editable install: only a wheel holds them inside the package.
        folder = Path(__file__).parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
