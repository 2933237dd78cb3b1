"""Recipes: TOML files that describe a training. This module has the common settings; each system adds its own class."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dialog_gen.core.errors import UsageError
from dialog_gen.core.toml_files import shipped_toml
from dialog_train.losses.base import LOSSES

DialogueUse = Literal["rotate", "concatenate"]
Residency = Literal["auto", "always", "never"]
CandidateFormat = Literal["question_answer", "statement", "both"]
"""How a question and an answer become one text: one after the other, as a sentence, or each for half of the pairs."""

FillUp = Literal["all", "misfits"]
"""Which answers to other types of questions are foils where a type has too few: all, or those that do not fit."""

REPORT_FILE, MODEL_FOLDER, EMA_FOLDER, CHECKPOINTS = "train.json", "model", "model-ema", "checkpoints"
"""Names in the folder of a training."""

_Beta = Annotated[float, Field(ge=0, lt=1)]
ContextLength = Annotated[int, Field(ge=2, le=8192)]
"""Tokens per text; a tower's mask takes the square of it in memory."""


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
    resident: Residency = "auto"
    """Whether vectors and token ids are copied to each GPU at the start: "auto" does so if they take no more than a
    quarter of its free memory, and "always" in any case, on a CPU too. Otherwise each batch is read from the files in
    `work`. The batches are the same."""


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


class LoraSettings(Settings):
    """LoRA: low-rank updates of a text tower's weights are trained in place of the weights; see `dialog_train.lora`."""

    rank: int = Field(default=8, ge=1)
    """Rank of each weight's update."""
    alpha: float = Field(default=16.0, gt=0)
    """The update is multiplied by alpha / rank."""
    layers: int | None = Field(default=None, ge=1)
    """Update only this many of the last transformer layers. None: all."""
    parts: tuple[Literal["attention", "mlp"], ...] = Field(default=("attention", "mlp"), min_length=1)
    """Parts of each layer whose weights are updated. In open_clip's own towers, "attention" is the projection to
    queries, keys and values."""


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
    mini_batch_size: int | None = Field(default=None, ge=1)
    """Texts, or images, per pass of a tower in each process. Activations are kept only for one pass, and computed again
    for the gradients, which are those of the whole batch; a step takes about a third longer. None: one pass over all
    texts, if memory allows it."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Maximum norm of the gradient; larger gradients are scaled down."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the towers; features, losses and weights are always float32."""
    compile: bool = False
    """Compile the layers of the text towers (`torch.compile`), which must be open_clip's own, BERT, RoBERTa or
    XLM-RoBERTa: for GPUs; the first steps take longer."""
    train_last_layers: int | None = Field(default=None, ge=1)
    """Train only this many of the last transformer layers, with the final norm and projection. None: all."""
    lora: LoraSettings | None = None
    """Train low-rank updates of a text tower's weights only. None: the weights themselves."""
    logit_scale: Literal["learn", "fixed"] = "learn"
    """The logit scale starts from the model's value; if it is learned, it is limited to [1, 100] as in CLIP."""
    shard: bool = False
    """Divide weights, gradients and the optimizer's state among the processes (FSDP2), for towers that are too large
    for one GPU. One process alone ignores it."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Also keep a moving average of the weights, written to OUT/model-ema."""

    @property
    def partial(self) -> str | None:
        """The option that trains only a part of a text tower, if one is set."""
        chosen = [name for name in ("train_last_layers", "lora") if getattr(self, name) is not None]
        return f"optim.{chosen[0]}" if chosen else None

    @model_validator(mode="after")
    def _one_choice_of_weights(self) -> Self:
        if self.shard and self.precision == "fp16":
            raise ValueError('shard needs precision = "bf16" or "no"')
        if self.lora is not None and self.train_last_layers is not None:
            raise ValueError("lora trains no whole layers: leave out train_last_layers, or set lora.layers")
        return self


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
    takes_mini_batches: ClassVar[bool] = False
    """Whether the system can use `optim.mini_batch_size`."""

    @model_validator(mode="after")
    def _known_mini_batches(self) -> Self:
        if self.optim.mini_batch_size is not None and not self.takes_mini_batches:
            raise ValueError(
                f"optim.mini_batch_size = {self.optim.mini_batch_size} is not for this system: leave it out, and lower "
                "optim.batch_size if memory is short"
            )
        return self


class DialogueRecipe(Recipe):
    """Settings of trainings on image vectors and dialogues."""

    takes_mini_batches: ClassVar[bool] = True
    data: DataSettings
    dialogues: DialogueUse = "rotate"
    """"rotate": one question-answer pair per image and epoch, another one in the next epoch. "concatenate": all pairs
    joined."""


class LongTextRecipe(DialogueRecipe):
    """Settings of trainings of a text tower whose context can be extended."""

    context_length: ContextLength | None = None
    """Tokens per text. If the model reads fewer, its positional embedding is stretched as in Long-CLIP (arXiv
    2403.15378), where 77 become 248. None: the model's length."""


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
