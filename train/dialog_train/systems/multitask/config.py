"""The recipe of three-stage multi-task alignment: what all stages share, and a table for each."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dialog_gen.core.hashing import hash_64
from dialog_train.config import DialogueRecipe, DialogueUse, Settings

TextTask = Literal["pairs", "triplets"]
_OF_STAGE = ("lr", "batch_size", "max_steps", "warmup_steps")


class TextPairSettings(Settings):
    """The text-text task."""

    pairs: Path | None = None
    """A Parquet file, or a folder of them, with columns `query` and `positive`. None: pairs are made from the
    dialogues, of captions with all pairs of their image, and of questions with their answers."""
    triplets: Path | None = None
    """The same with a column `negatives`, lists of texts. None: questions with right and wrong answers, from the
    dialogues."""
    negatives: int = Field(default=7, ge=1)
    """Wrong answers a question, in triplets."""
    temperature: float = Field(default=0.05, gt=0)
    """Of InfoNCE; it is not learned. That of images and texts is: see `optim.logit_scale`."""
    leave_out_equal: bool = False
    """Take no text for a negative of a query whose own target is the same text, or that stands with the same query."""


class StageSettings(Settings):
    """A stage. What it leaves out of lr, batch_size, max_steps and warmup_steps is that of `optim`."""

    texts: TextTask
    """InfoNCE on pairs, or InfoNCE+ on triplets."""
    captions: Literal["short", "long"]
    """What stands against the images: captions, or dialogues."""
    context_length: int | None = Field(default=None, ge=2)
    """Tokens a text. Where the model reads fewer, its positional embedding is stretched. None: what the model reads."""
    text_batch_size: int | None = Field(default=None, ge=2)
    """Pairs or triplets a step over all processes. None: as many as images."""
    lr: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=2)
    max_steps: int | None = Field(default=None, ge=1)
    warmup_steps: int | None = Field(default=None, ge=0)


class StageRecipe(DialogueRecipe):
    """One stage, as `loop.fit` takes it."""

    texts: TextPairSettings
    stage: StageSettings

    @property
    def text_batch_size(self) -> int:
        """Pairs or triplets a step."""
        return self.stage.text_batch_size or self.optim.batch_size


class MultitaskRecipe(DialogueRecipe):
    """Text-text and text-image alignment together, in stages (arXiv 2405.20204). OUT/stage-N holds each of them."""

    dialogues: DialogueUse = "concatenate"
    texts: TextPairSettings = TextPairSettings()
    stages: tuple[StageSettings, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _grows(self) -> Self:
        lengths = [stage.context_length for stage in self.stages if stage.context_length]
        if lengths != sorted(lengths):
            raise ValueError(f"context_length may not become less from stage to stage, got {lengths}")
        return self

    def of_stage(self, number: int) -> StageRecipe:
        """The recipe of a stage, from 1: it has a folder and, so that its batches are others, a seed of its own."""
        stage = self.stages[number - 1]
        changes = {name: value for name in _OF_STAGE if (value := getattr(stage, name)) is not None}
        own = {name: getattr(self, name) for name in DialogueRecipe.model_fields}
        own |= {"out": self.out / f"stage-{number}", "seed": hash_64(f"{self.seed}/stage-{number}")}
        own["optim"] = self.optim.model_copy(update=changes)
        return StageRecipe(**own, texts=self.texts, stage=stage)
