"""The recipe of a CLOSE training."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dialog_gen.clip.base import WritingTask
from dialog_gen.clip.close.layout import AdapterKind
from dialog_train.config import Recipe, Settings

Context = Literal["caption", "dialogue"]


class TextSettings(Settings):
    """Where the texts are. Their images need not be there, but for an adapter."""

    dialogues: str
    """The dataset that `dialog-gen run --out` wrote: a folder or an fsspec URL."""
    work: Path
    """Local folder for what is made of it once: `texts` and, for an adapter, `vectors`."""
    kept_only: bool = False
    """Leave out question-answer pairs that a quality gate marked: see `dialog-gen gate`."""


class DecoderSettings(Settings):
    """The T5 that is trained."""

    name: str | None = None
    """Hugging Face id or folder of a pretrained T5, as safetensors. None: one with random weights and a tokenizer
    of the words that the training texts consist of."""
    revision: str | None = None
    """Of a Hugging Face id."""
    width: int = Field(default=128, ge=1)
    """Of a T5 with random weights, as `layers`, `heads` and `dropout`; a pretrained one brings its own."""
    layers: int = Field(default=2, ge=1)
    """Number of layers in the encoder, and again in the decoder."""
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    prefix_vectors: int = Field(default=4, ge=1)
    """What a CLIP vector becomes before the embeddings of the prompt's tokens."""
    max_prompt_tokens: int = Field(default=64, ge=2)
    max_target_tokens: int = Field(default=64, ge=2)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must divide by heads, got {self.width} and {self.heads}")
        return self


class CloseRecipe(Recipe):
    """CLOSE: a decoder that reads noisy text vectors, so that it can read image vectors."""

    data: TextSettings
    decoder: DecoderSettings = DecoderSettings()
    tasks: tuple[WritingTask, ...] = Field(default=("vqa",), min_length=1)
    """What is learned, in turn from epoch to epoch: see `dialog_train.systems.close.examples`."""
    context: Context = "caption"
    """The text whose vector stands for the image in VQA and entailment: its caption, or its question-answer pairs in
    one text. A caption is written from its own vector."""
    noise: float = Field(default=0.04, ge=0)
    """Standard deviation w of the Gaussian noise, in each dimension of a unit-norm text vector."""
    adapter: AdapterKind = "none"
    """Moves text vectors towards image vectors, before the noise: see `dialog_gen.clip.close.adapters`. All but
    "none" are fitted to paired images and texts; without, no image is read."""

    @model_validator(mode="after")
    def _applies(self) -> Self:
        if self.optim.train_last_layers is not None:
            raise ValueError("optim.train_last_layers is for text towers: CLOSE trains all of its decoder")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be different, got {list(self.tasks)}")
        return self
