"""DRAFT-plus: tunes a CLIP's text tower on answers against foils, with what the untuned tower did as a guard."""

import logging
from typing import TYPE_CHECKING

from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem
from dialog_train.systems.draft_plus.config import DraftPlusRecipe

if TYPE_CHECKING:
    from dialog_train.loop import FitResult


_log = logging.getLogger(__name__)
# The number of images among which each loss must find an example.
_SAMPLE = 4096


def train(recipe: DraftPlusRecipe, run: Run) -> "FitResult":
    """Trains the text tower."""
    from dialog_gen.clip.loader import load_clip
    from dialog_train.data.candidate_set import CandidateBatches
    from dialog_train.data.prepare import prepare_candidate_set
    from dialog_train.long_text import longer, reading
    from dialog_train.systems.draft_plus.training import PlusObjective, freeze_embeddings
    from dialog_train.text_tuning import TextTuning

    if recipe.questions_only and recipe.guard.kind != "none":
        _log.warning(
            "questions_only: captions keep the untuned tower, so the guard only holds back what is learned; "
            "guard.kind=none leaves it out"
        )
    clip = load_clip(recipe.model, recipe.pretrained, allow_activation_mismatch=recipe.allow_activation_mismatch)
    stretched = longer(clip, recipe)
    candidate_set = prepare_candidate_set(
        recipe,
        reading(clip, stretched),
        run.accelerator,
        run.on_progress,
        text_format=recipe.texts,
        fill_up=recipe.fill_up,
        foils=recipe.foils,
        denials=recipe.loss.denials > 0,
        conjunctions=recipe.loss.conjunctions > 0,
    )
    # The objective copies the tower before parts of it are frozen or get updates.
    objective = PlusObjective(stretched, recipe)
    objective.require_examples(candidate_set.candidate_batch(range(min(len(candidate_set), _SAMPLE)), epoch=0))
    system = TextTuning(stretched, objective, recipe.optim, questions_only=recipe.questions_only)
    if recipe.guard.freeze_embeddings:
        freeze_embeddings(system)
    batches = CandidateBatches(
        candidate_set,
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        balance=recipe.balance,
        recombined=recipe.guard.recombined,
        full_length=system.sees_padding,
    )
    return run.fit(recipe, system, batches)


SYSTEMS.register("draft-plus")(
    TrainingSystem(
        description="DRAFT-plus: a text tower on answers against foils, with a guard for retrieval.",
        recipe=DraftPlusRecipe,
        train=train,
    )
)
