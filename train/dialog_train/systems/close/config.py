"""The recipe of a CLOSE training."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dialog_gen.clip.base import WritingTask
from dialog_gen.clip.close.layout import AdapterKind
from dialog_train.config import Recipe, Settings

Context = Literal["caption", "dialogue"]


class TextSettings(Settings):
    """Location of the texts. Images are read only to fit an adapter."""

    dialogues: str
    """The dataset that `dialog-gen run --out` wrote: a folder or an fsspec URL."""
    work: Path
    """Local folder for derived data: `texts` and, for an adapter, `vectors`."""
    kept_only: bool = False
    """Leave out question-answer pairs that a quality gate marked: see `dialog-gen gate`."""


class DecoderSettings(Settings):
    """The T5 model that is trained."""

    name: str | None = None
    """Hugging Face id or folder of a pretrained T5, as safetensors. None: a T5 with random weights and a word tokenizer
    built from the training texts."""
    revision: str | None = None
    """Revision of the Hugging Face id."""
    width: int = Field(default=128, ge=1)
    """Width of the model. `width`, `layers`, `heads` and `dropout` apply to a T5 with random weights; a pretrained one
    has its own."""
    layers: int = Field(default=2, ge=1)
    """Number of layers in the encoder, and also in the decoder."""
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    prefix_vectors: int = Field(default=4, ge=1)
    """Number of embeddings that a CLIP vector is projected to; they precede the embeddings of the prompt's tokens."""
    max_prompt_tokens: int = Field(default=64, ge=2)
    max_target_tokens: int = Field(default=64, ge=2)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must divide by heads, got {self.width} and {self.heads}")
        return self


class CloseRecipe(Recipe):
    """CLOSE: a decoder that is trained on noisy text vectors, so that it can also read image vectors."""

    data: TextSettings
    decoder: DecoderSettings = DecoderSettings()
    tasks: tuple[WritingTask, ...] = Field(default=("vqa",), min_length=1)
    """The tasks to learn; an image's examples alternate between them, see `dialog_train.systems.close.examples`."""
    context: Context = "caption"
    """The text whose vector represents the image in VQA and entailment: the caption, or all question-answer pairs
    joined. The captioning task uses the caption's own vector."""
    noise: float = Field(default=0.04, ge=0)
    """Standard deviation w of the Gaussian noise in each dimension of a unit-norm text vector."""
    adapter: AdapterKind = "none"
    """Moves text vectors towards image vectors before the noise is added: see `dialog_gen.clip.close.adapters`. All
    kinds except "none" are fitted to paired images and texts; with "none", no image is read."""

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.optim.partial:
            raise ValueError(f"{self.optim.partial} is for text towers: CLOSE trains all of its decoder")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be different, got {list(self.tasks)}")
        return self
