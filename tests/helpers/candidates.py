"""A tiny training of DRAFT-plus with all its parts, on data that a test has prepared beside the output."""

from pathlib import Path
from typing import Any

from dialog_gen.clip.loader import load_clip
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.asking.prior import AnswerPrior
from dialog_train.data.candidate_set import CandidateBatches, CandidateSet
from dialog_train.data.pair_texts import Candidates
from dialog_train.data.training_set import build_training_set
from dialog_train.data.vectors import VectorStore, embed_dataset
from dialog_train.loop import FitResult, fit
from dialog_train.systems.draft_plus.config import DraftPlusRecipe
from dialog_train.systems.draft_plus.training import PlusObjective
from dialog_train.text_tuning import TextTuning

FOILS = 3


def prepare(folder: Path, clip: Path, dialogues: Path) -> None:
    """Writes the candidates of a dataset to `folder`."""
    loaded, dataset = load_clip(str(clip)), DatasetFolder(str(dialogues))
    (folder / "clip").symlink_to(clip)
    embed_dataset(dataset, loaded, folder / "vectors")
    prior = AnswerPrior.of_dataset(dataset)
    texts = Candidates(prior=prior, text_format="statement", foils=FOILS, denials=True, conjunctions=True)
    build_training_set(dataset, VectorStore(folder / "vectors"), loaded, folder / "candidates", pair_texts=texts)


def train_plus(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`; its data is what `prepare` wrote to the folder that holds `out`."""
    optim = {name: value for name, value in changes.items() if name != "save_every_steps"}
    recipe = DraftPlusRecipe.model_validate(
        {
            "model": "tiny",
            "out": out,
            "data": {"dialogues": "nowhere", "work": "nowhere"},
            "foils": FOILS,
            "balance": 0.5,
            "loss": {"dialogues": 0.3, "denials": 0.5, "conjunctions": 0.3, "truths": 0.2},
            "guard": {"kind": "similarities", "recombined": True},
            "log": {"tensorboard": False},
            "save_every_steps": changes.get("save_every_steps"),
            "optim": {"lr": 1e-4, "batch_size": 16, "max_steps": 8, **optim},
        }
    )
    clip = load_clip(str(out.parent / "clip"))
    system = TextTuning(clip, PlusObjective(clip, recipe), recipe.optim)
    rows = CandidateSet(out.parent / "candidates")
    batches = CandidateBatches(
        rows, batch_size=16, seed=0, balance=recipe.balance, recombined=True, full_length=system.sees_padding
    )
    return fit(recipe, system, batches, **options)
