"""Prepares the data of a training: one process computes what is missing while the others wait.

If a training spans several machines, they must share the folder `data.work` of the recipe.
"""

from pathlib import Path

from accelerate import Accelerator

from dialog_gen.clip.loader import Clip
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.config import DialogueRecipe, PixelRecipe
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_set import PixelSet
from dialog_train.data.pixel_sources import open_pixel_source
from dialog_train.data.training_set import TrainingSet, build_training_set
from dialog_train.data.vectors import DECODERS, VectorStore, embed_dataset


def prepare_vectors(
    dataset: DatasetFolder, clip: Clip, out: Path, device: str, on_progress: OnProgress, *, crops: int = 0
) -> VectorStore:
    """Computes the image vectors of a dataset. Call it in one process only. Raises what `embed_dataset` raises."""
    embed_dataset(dataset, clip, out, device=device, workers=DECODERS, crops=crops, on_progress=on_progress)
    return VectorStore(out)


def prepare_training_set(
    recipe: DialogueRecipe, clip: Clip, accelerator: Accelerator, on_progress: OnProgress = ignore_progress
) -> TrainingSet:
    """Computes image vectors and token ids. Raises what `embed_dataset` and `build_training_set` raise."""
    rows = recipe.data.work / "training_set"
    if accelerator.is_main_process:
        dataset = DatasetFolder.existing(recipe.data.dialogues)
        vectors = prepare_vectors(
            dataset, clip, recipe.data.work / "vectors", str(accelerator.device), on_progress, crops=recipe.data.crops
        )
        build_training_set(dataset, vectors, clip, rows, kept_only=recipe.data.kept_only)
    accelerator.wait_for_everyone()
    return TrainingSet(rows)


def prepare_pixel_set(recipe: PixelRecipe, clip: Clip, accelerator: Accelerator) -> PixelSet:
    """Computes pixels and token ids. Raises what `open_pixel_source` and `build_pixel_set` raise."""
    out = recipe.data.work / "pixel_set"
    if accelerator.is_main_process:
        build_pixel_set(open_pixel_source(recipe.data), clip, out, workers=DECODERS)
    accelerator.wait_for_everyone()
    return PixelSet(out)
