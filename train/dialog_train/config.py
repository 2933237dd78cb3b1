"""Recipes: what a training is, as TOML files. One model an objective; what all of them share is in `Recipe`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dialog_gen.core.toml_files import read_toml_model
from dialog_train.losses.contrastive import Direction
from dialog_train.losses.draft import MmdOver

DialogueUse = Literal["rotate", "concatenate"]


Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """A table of a recipe: keys that are not its own are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(Settings):
    """Where the training data is."""

    dialogues: str
    """The dataset that `dialog-gen run --out` wrote: a folder or an fsspec URL."""
    work: Path
    """Local folder for what is made of it once: `vectors` and `training_set`. Trainings of one model share it."""
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
    """Local folder for what is made of it once: `pixel_set`. Trainings of one input size and tokenizer share it."""
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


class DraftLossSettings(Settings):
    """The options of `dialog_train.losses.draft_loss`, which says what they do."""

    a: float = Field(default=0.5, ge=0, le=1)
    """Weight of the dialogues; captions weigh 1 - a."""
    direction: Direction = "symmetric"
    """Softmax over texts, over images ("t2i", the thesis' equation), or the mean of both."""
    mmd_weight: float = Field(default=1.0, ge=0)
    """Weight of the discrepancy between the similarity distributions; 0 leaves it out."""
    mmd_sigma: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] | Literal["median"] = 0.2
    """Width of the kernel on the scale of cosines, for "rows" sqrt(batch_size) times that; several are averaged."""
    mmd_over: MmdOver = "scalars"
    """What a sample of the two distributions is."""
    mmd_root: bool = False
    """The root of MMD^2, as printed in the thesis."""
    mmd_detach_captions: bool = False
    """Dialogues are pulled towards captions, never captions towards dialogues."""


class OptimSettings(Settings):
    """AdamW, its schedule, and what is trained."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Not for norms, biases, embeddings and the logit scale."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    """open_clip's value for CLIP with a ViT image tower."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up; `schedule` follows."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate goes to 0."""
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


class LogSettings(Settings):
    """Where loss curves go."""

    tensorboard: bool = True
    """To OUT/tensorboard."""
    wandb: bool = False
    """To Weights & Biases, under the account of the environment."""
    every_steps: int = Field(default=10, ge=1)
    """Each point is the mean of so many steps."""


class BaseRecipe(Settings):
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
    """Of the order of the images, of dropout, and of whatever else is drawn."""
    save_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints that `--resume auto` goes on from. None: only the trained model is written."""


class Recipe(BaseRecipe):
    """Trainings on image vectors and dialogues."""

    data: DataSettings
    dialogues: DialogueUse = "rotate"
    """One question-answer pair of an image an epoch, another in the next; or all in one text."""


class PixelRecipe(BaseRecipe):
    """Trainings that see pixels."""

    data: PixelSettings


class DraftRecipe(Recipe):
    """DRAFT: captions and dialogues against the images of a frozen tower."""

    loss: DraftLossSettings = DraftLossSettings()
    caption_only: bool = False
    """The control experiment: the dialogue stream gets the captions, all else is the same."""


class ThirdTowerLossSettings(Settings):
    """The options of `dialog_train.losses.third_tower_loss`, which says what they do."""

    a: float = Field(default=0.65, ge=0, le=1)
    """Weight of the images; captions weigh 1 - a."""
    direction: Direction = "symmetric"
    """Softmax over dialogues, over images and captions ("t2i", the thesis' equation), or the mean of both."""


class ThirdTowerRecipe(Recipe):
    """CLIP-3Modal: a third tower for dialogues, beside frozen image and text towers."""

    loss: ThirdTowerLossSettings = ThirdTowerLossSettings()
    dialogues: DialogueUse = "concatenate"
    beta: float = Field(default=0.9, ge=0, le=1)
    """Share of the text tower in a text's vector, where an evaluation says nothing else."""


class TowersRecipe(PixelRecipe):
    """Trainings of an image tower and a text tower."""

    from_scratch: bool = False
    """Start from random weights, drawn from `seed`; `model` may be a JSON file of open_clip's model configuration."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.from_scratch and self.pretrained is not None:
            raise ValueError(f"from_scratch takes no weights: leave out pretrained = {self.pretrained!r}")
        return self


class ClipRecipe(TowersRecipe):
    """Contrastive training of an image tower and a text tower on images and captions."""

    loss: Literal["clip", "siglip"] = "clip"
    """Softmax over the batch in both directions (arXiv 2103.00020), or a sigmoid for each pair (arXiv 2303.15343)."""
    lock_image: bool = False
    """Train the text tower alone, against a frozen image tower (LiT, arXiv 2111.07991)."""


AnyRecipe = TypeVar("AnyRecipe", bound=BaseRecipe)


def load_recipe(path: Path, overrides: Iterable[str] = (), kind: type[AnyRecipe] = DraftRecipe) -> AnyRecipe:
    """The recipe that a TOML file holds, changed by `overrides` of the form "optim.lr=1e-4".

    Raises UsageError for a file that cannot be read, an unknown key (did you mean ...) or a value that does not fit.
    """
    return read_toml_model(path, kind, "recipe", overrides)
