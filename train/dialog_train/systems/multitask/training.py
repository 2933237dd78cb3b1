"""Three-stage multi-task alignment: the sum of a text-text and a text-image loss (arXiv 2405.20204).

    OUT/stage-N/   the training of stage N, as `loop` writes it; the next stage starts from its model
    OUT/model/     the last stage's model

The image features are vectors of the frozen image tower; the paper trains the image tower as well.
"""

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import hash_64
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.data.prepare import compute_rows
from dialog_train.data.training_set import Batch, EpochOrder, TrainingSet
from dialog_train.long_text import stretch_context, with_context
from dialog_train.loop import EMA_FOLDER, MODEL_FOLDER, FitResult, OnStep, Resume, fit
from dialog_train.losses.contrastive import contrastive_loss
from dialog_train.losses.info_nce import info_nce
from dialog_train.processes import gather_rows
from dialog_train.system import Share
from dialog_train.systems.multitask.config import MultitaskRecipe, StageRecipe, TextTask
from dialog_train.systems.multitask.pairs import PairSource, TextBatch, TextPairs, build_text_pairs
from dialog_train.systems.multitask.sources import DialoguePairs, DialogueRows, DialogueTriplets, ParquetPairs
from dialog_train.text_tuning import Encode, Objective, PairBatches, Rows, TextTuning


@dataclass(frozen=True, slots=True, kw_only=True)
class MultitaskBatch:
    """A batch of images with captions and dialogues, and a batch of text pairs or triplets."""

    images: Batch
    texts: TextBatch

    @property
    def image_ids(self) -> Sequence[str]:
        """Ids of the images."""
        return self.images.image_ids

    def to(self, device: torch.device) -> "MultitaskBatch":
        """A copy with its tensors on `device`."""
        return MultitaskBatch(images=self.images.to(device), texts=self.texts.to(device))

    def statistics(self) -> dict[str, float | Tensor]:
        """The values that are logged for each batch."""
        return {**self.images.statistics(), "duplicate_targets": self.texts.duplicate_targets}


class TextRows(Protocol):
    """The part of `TextPairs` that `MultitaskBatches` uses."""

    fingerprint: str

    def __len__(self) -> int: ...
    def batch(self, rows: Any, *, full_length: bool = False) -> TextBatch:
        """The given rows as a batch."""
        ...


class MultitaskBatches:
    """`Data` of two streams, each with its own batch size and order. An epoch is one pass over the images."""

    def __init__(self, recipe: StageRecipe, images: Rows, texts: TextRows, *, full_length: bool) -> None:
        """Raises UsageError for a batch that is larger than the data."""
        if len(texts) < recipe.text_batch_size:
            raise UsageError(
                f"a batch of {recipe.text_batch_size} needs as many text {recipe.stage.texts}, there are {len(texts)}: "
                "lower text_batch_size."
            )
        self._images = PairBatches(recipe, images, full_length=full_length)
        self._texts, self._full_length = texts, full_length
        self._order = EpochOrder(len(texts), recipe.text_batch_size, hash_64(f"{recipe.seed}/texts"))
        self.steps_per_epoch = self._images.steps_per_epoch
        of_texts = {"rows": len(texts), "fingerprint": texts.fingerprint}
        self.fingerprint: dict[str, Any] = {**self._images.fingerprint, "texts": of_texts}

    def batch(self, step: int, share: Share) -> MultitaskBatch:
        """A process's share of the batch of a step, as `Data` describes."""
        _, chosen = self._order.rows(step, share)
        texts = self._texts.batch(chosen, full_length=self._full_length)
        return MultitaskBatch(images=self._images.batch(step, share), texts=texts)


def multitask_objective(recipe: StageRecipe) -> Objective:
    """The objective of a stage: InfoNCE of the texts, and CLIP's loss of captions or dialogues with images."""

    def objective(batch: MultitaskBatch, encode: Encode, logit_scale: Tensor) -> dict[str, Tensor]:
        texts = batch.texts
        short = recipe.stage.captions == "short"
        of_images = batch.images.captions if short else batch.images.dialogues
        queries, targets, negatives, captions = encode(texts.queries, texts.targets, texts.negatives, of_images)
        left_out = partial(equal_texts, gather_rows(texts.text_ids)) if recipe.texts.leave_out_equal else None
        wrong, temperature = negatives if len(negatives) else None, recipe.texts.temperature
        return {
            "text_loss": info_nce(queries, targets, wrong, temperature=temperature, left_out=left_out),
            "image_text_loss": contrastive_loss(batch.images.image_vectors, captions, logit_scale),
        }

    return objective


def equal_texts(text_ids: Tensor, rows: slice) -> Tensor:
    """`TextBatch.text_ids` (N, 2 + K), B of its rows -> (B, N + N * K) bool: the candidates that are not negatives of
    each of these queries.

    These are the targets of other pairs that equal the query's own target or belong to an equal query, and the wrong
    answers that equal the query's own target. `info_nce` leaves them out.
    """
    queries, targets, negatives = text_ids[:, 0], text_ids[:, 1], text_ids[:, 2:].flatten()
    same = (targets[rows, None] == targets) | (queries[rows, None] == queries)
    same.diagonal(rows.start).fill_(False)
    return torch.cat([same, targets[rows, None] == negatives], dim=1)


@dataclass(frozen=True, slots=True)
class MultitaskSets:
    """Folders of the data of all stages, tokenised for the longest context among them."""

    images: Path
    texts: dict[TextTask, Path]


def prepare_sets(
    recipe: MultitaskRecipe, clip: Clip, accelerator: Accelerator, on_progress: OnProgress = ignore_progress
) -> MultitaskSets:
    """Computes missing data in one process while the others wait. Several machines must share `work`.

    Raises UsageError in the same cases as `build_training_set` and `build_text_pairs`.
    """
    lengths = [stage.context_length or 0 for stage in recipe.stages]
    longest = with_context(clip.tokenizer, max(clip.tokenizer.context_length, *lengths))
    images = compute_rows(recipe, replace(clip, tokenizer=longest), accelerator, on_progress)
    texts: dict[TextTask, Path] = {s.texts: recipe.data.work / f"text_{s.texts}" for s in recipe.stages}
    if accelerator.is_main_process:
        for task, folder in texts.items():
            build_text_pairs(_source(recipe, task), TextEncoder(longest), folder)
    accelerator.wait_for_everyone()
    return MultitaskSets(images, texts)


def _source(recipe: MultitaskRecipe, task: TextTask) -> PairSource:
    count = recipe.texts.negatives if task == "triplets" else 0
    own = recipe.texts.pairs if task == "pairs" else recipe.texts.triplets
    if own is not None:
        return ParquetPairs(own, count)
    rows = DialogueRows(DatasetFolder.existing(recipe.data.dialogues), recipe.data.kept_only)
    return DialogueTriplets(rows, count, recipe.seed) if count else DialoguePairs(rows)


def train_stages(
    recipe: MultitaskRecipe,
    clip: Clip,
    sets: MultitaskSets,
    accelerator: Accelerator,
    *,
    resume: Resume = "never",
    on_step: OnStep | None = None,
    on_progress: OnProgress = ignore_progress,
) -> FitResult:
    """Trains one stage after the other and returns the result of the last one.

    With `resume = "auto"`, finished stages and steps are not repeated. Raises what `loop.fit` and `stretch_context`
    raise.
    """
    result: FitResult | None = None
    _check_stages(recipe, clip, sets, accelerator)
    for number in range(1, len(recipe.stages) + 1):
        stage = recipe.of_stage(number)
        if number > 1:
            clip = load_clip(str(recipe.of_stage(number - 1).out / MODEL_FOLDER))
        clip = stretch_context(clip, stage.stage.context_length or clip.tokenizer.context_length)
        system = TextTuning(clip, multitask_objective(stage), stage.optim)
        data = _batches(stage, clip, sets, full_length=system.sees_padding, device=accelerator.device)
        with _logging_to(accelerator, stage.out):
            result = fit(
                stage, system, data, accelerator=accelerator, resume=resume, on_step=on_step, on_progress=on_progress
            )
    assert result is not None  # noqa: S101 - a recipe has stages
    if accelerator.is_main_process:
        for folder in (MODEL_FOLDER, EMA_FOLDER):
            if (found := recipe.of_stage(len(recipe.stages)).out / folder).is_dir():
                shutil.copytree(found, recipe.out / folder, dirs_exist_ok=True)
    accelerator.wait_for_everyone()
    return result


def _batches(
    stage: StageRecipe, clip: Clip, sets: MultitaskSets, *, full_length: bool, device: torch.device | None = None
) -> MultitaskBatches:
    """The batches of a stage; with `device`, they are placed as the recipe says."""
    context = clip.tokenizer.context_length
    images, texts = TrainingSet(sets.images, context), TextPairs(sets.texts[stage.stage.texts], context)
    if device is not None:
        images.place(device, stage.data.resident)
    return MultitaskBatches(stage, images, texts, full_length=full_length)


def _check_stages(recipe: MultitaskRecipe, clip: Clip, sets: MultitaskSets, accelerator: Accelerator) -> None:
    """Raises the errors of all stages now, rather than after days of training the earlier ones."""
    share = Share(accelerator.process_index, accelerator.num_processes)
    for number in range(1, len(recipe.stages) + 1):
        stage = recipe.of_stage(number)
        clip = stretch_context(clip, stage.stage.context_length or clip.tokenizer.context_length)
        _batches(stage, clip, sets, full_length=TextTower(clip.model).whole is not None).batch(0, share)


@contextmanager
def _logging_to(accelerator: Accelerator, out: Path) -> Generator[None]:
    """Writes the loss curves of a stage to its own folder; then frees what Accelerate keeps of the stage."""
    accelerator.project_configuration.logging_dir = str(out / "tensorboard")
    yield
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
    accelerator.free_memory()
