"""The recipe of three-stage multi-task alignment: shared settings and a table per stage."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from dialog_gen.core.hashing import hash_64
from dialog_train.config import ContextLength, DialogueRecipe, DialogueUse, Settings

TextTask = Literal["pairs", "triplets"]
_OF_STAGE = ("lr", "batch_size", "max_steps", "warmup_steps")


class TextPairSettings(Settings):
    """The text-text task."""

    pairs: Path | None = None
    """A Parquet file, or a folder of them, with columns `query` and `positive`. None: pairs are made from the
    dialogues, namely a caption with all pairs of its image, and each question with its answer."""
    triplets: Path | None = None
    """The same with an additional column `negatives`: lists of texts. None: questions with right and wrong answers from
    the dialogues."""
    negatives: int = Field(default=7, ge=1)
    """Wrong answers per question, in triplets."""
    temperature: float = Field(default=0.05, gt=0)
    """Temperature of InfoNCE; it is not learned. The temperature of images and texts is learned: see
    `optim.logit_scale`."""
    leave_out_equal: bool = False
    """Do not use a text as a negative of a query if it equals the query's target or is the target of an equal query."""


class StageSettings(Settings):
    """One stage. `optim` supplies lr, batch_size, max_steps and warmup_steps if the stage does not set them."""

    texts: TextTask
    """"pairs": InfoNCE; "triplets": InfoNCE+, with hard negatives."""
    captions: Literal["short", "long"]
    """The texts that are aligned with the images: captions ("short") or dialogues ("long")."""
    context_length: ContextLength | None = None
    """Tokens per text. If the model reads fewer, its positional embedding is stretched. None: the model's length."""
    text_batch_size: int | None = Field(default=None, ge=2)
    """Pairs or triplets per step, over all processes. None: the same as `batch_size`."""
    lr: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=2)
    max_steps: int | None = Field(default=None, ge=1)
    warmup_steps: int | None = Field(default=None, ge=0)


class StageRecipe(DialogueRecipe):
    """The recipe of a single stage, for `loop.fit`."""

    texts: TextPairSettings
    stage: StageSettings

    @property
    def text_batch_size(self) -> int:
        """Pairs or triplets per step, over all processes."""
        return self.stage.text_batch_size or self.optim.batch_size


class MultitaskRecipe(DialogueRecipe):
    """Joint text-text and text-image alignment, in stages (arXiv 2405.20204). Stage N writes to OUT/stage-N."""

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
        """The recipe of stage `number`, counted from 1, with its own folder and its own seed for the order."""
        stage = self.stages[number - 1]
        changes = {name: value for name in _OF_STAGE if (value := getattr(stage, name)) is not None}
        own = {name: getattr(self, name) for name in DialogueRecipe.model_fields}
        own |= {"out": self.out / f"stage-{number}", "seed": hash_64(f"{self.seed}/stage-{number}")}
        own["optim"] = self.optim.model_copy(update=changes)
        return StageRecipe(**own, texts=self.texts, stage=stage)
