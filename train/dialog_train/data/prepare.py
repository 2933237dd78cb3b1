"""Prepares the data of a training: one process computes what is missing while the others wait.

If a training spans several machines, they must share the folder `data.work` of the recipe.
"""

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from dialog_gen.clip.loader import Clip
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.mapping import map_here
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.asking.prior import AnswerPrior
from dialog_train.asking.sentences import RULES, Sentences
from dialog_train.config import CandidateFormat, DialogueRecipe, FillUp, PixelRecipe
from dialog_train.data.candidate_set import CandidateSet
from dialog_train.data.pair_texts import Candidates, PairTexts, candidates_config
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_set import PixelSet
from dialog_train.data.pixel_sources import open_pixel_source
from dialog_train.data.training_set import TrainingSet, build_training_set
from dialog_train.data.vectors import DECODERS, VectorStore, all_gpus, decoders_per_gpu, embed_dataset


def prepare_vectors(
    dataset: DatasetFolder, clip: Clip, out: Path, device: str, on_progress: OnProgress, *, crops: int = 0
) -> VectorStore:
    """Computes the image vectors of a dataset, on all GPUs of this machine if `device` is one of them.

    Call it in one process only. Raises what `embed_dataset` raises.
    """
    several = all_gpus() if device.startswith("cuda") else None
    embed_dataset(
        dataset,
        clip,
        out,
        device=device,
        workers=DECODERS if several is None else decoders_per_gpu(),
        crops=crops,
        map_shards=several or map_here,
        on_progress=on_progress,
    )
    return VectorStore(out)


def prepare_training_set(
    recipe: DialogueRecipe, clip: Clip, accelerator: Accelerator, on_progress: OnProgress = ignore_progress
) -> TrainingSet:
    """Computes image vectors and token ids, and places them as the recipe says. Raises what `compute_rows` raises."""
    training_set = TrainingSet(compute_rows(recipe, clip, accelerator, on_progress))
    training_set.place(accelerator.device, recipe.data.resident)
    return training_set


def compute_rows(
    recipe: DialogueRecipe, clip: Clip, accelerator: Accelerator, on_progress: OnProgress = ignore_progress
) -> Path:
    """Computes image vectors and token ids, and gives the folder for `TrainingSet`.

    Raises what `embed_dataset` and `build_training_set` raise.
    """
    rows = recipe.data.work / "training_set"
    _compute_rows(recipe, clip, rows, accelerator, on_progress, lambda dataset: None)
    return rows


def prepare_candidate_set(
    recipe: DialogueRecipe,
    clip: Clip,
    accelerator: Accelerator,
    on_progress: OnProgress = ignore_progress,
    *,
    text_format: CandidateFormat,
    fill_up: FillUp,
    foils: int,
    denials: bool,
    conjunctions: bool,
) -> CandidateSet:
    """Computes image vectors and the token ids of candidates (see `pair_texts`), and places them as the recipe says.

    Trainings with other candidates can share `work`: these rows are in `candidates-HASH`. Raises what `compute_rows`
    raises.
    """
    of_texts = candidates_config(text_format, foils, fill_up, denials, conjunctions)
    settings = {**of_texts, "kept_only": recipe.data.kept_only}
    rows = recipe.data.work / f"candidates-{sha256_json(settings)[:8]}"

    def texts_of(dataset: DatasetFolder) -> Candidates:
        prior = AnswerPrior.of_dataset(dataset)
        sentences = RULES if text_format == "question_answer" else Sentences.of_dataset(dataset)
        return Candidates(
            prior=prior,
            text_format=text_format,
            fill_up=fill_up,
            foils=foils,
            denials=denials,
            conjunctions=conjunctions,
            sentences=sentences,
        )

    _compute_rows(recipe, clip, rows, accelerator, on_progress, texts_of)
    candidate_set = CandidateSet(rows)
    candidate_set.place(accelerator.device, recipe.data.resident)
    return candidate_set


def _compute_rows(
    recipe: DialogueRecipe,
    clip: Clip,
    rows: Path,
    accelerator: Accelerator,
    on_progress: OnProgress,
    texts_of: Callable[[DatasetFolder], PairTexts | None],
) -> None:
    if accelerator.is_main_process:
        dataset = DatasetFolder.existing(recipe.data.dialogues)
        vectors = prepare_vectors(
            dataset, clip, recipe.data.work / "vectors", str(accelerator.device), on_progress, crops=recipe.data.crops
        )
        texts = texts_of(dataset)
        build_training_set(dataset, vectors, clip, rows, pair_texts=texts, kept_only=recipe.data.kept_only)
    accelerator.wait_for_everyone()


def prepare_pixel_set(recipe: PixelRecipe, clip: Clip, accelerator: Accelerator) -> PixelSet:
    """Computes pixels and token ids. Raises what `open_pixel_source` and `build_pixel_set` raise."""
    out = recipe.data.work / "pixel_set"
    if accelerator.is_main_process:
        build_pixel_set(open_pixel_source(recipe.data), clip, out, workers=DECODERS)
    accelerator.wait_for_everyone()
    pixel_set = PixelSet(out)
    pixel_set.pins = accelerator.device.type == "cuda"
    return pixel_set
