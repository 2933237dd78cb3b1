"""A stage of multi-task alignment that is small enough for milliseconds a step."""

from pathlib import Path
from typing import Any

import torch

from dialog_train.config import OptimSettings
from dialog_train.loop import FitResult, fit
from dialog_train.systems.multitask.config import MultitaskRecipe, StageRecipe
from dialog_train.systems.multitask.pairs import TextBatch
from dialog_train.systems.multitask.training import MultitaskBatches, multitask_objective
from dialog_train.text_tuning import TextTuning
from helpers.loops import CONTEXT, VOCABULARY, TinyRows, make_clip, texts_of

STAGE = {"texts": "triplets", "captions": "long", "text_batch_size": 6}


class TinyTexts:
    """Triplets in memory: query, target and wrong answers tell of one of nine things."""

    fingerprint = "tiny"

    def __init__(self, rows: int = 40, negatives: int = 2) -> None:
        self.rows, self.negatives = rows, negatives
        self.served: list[list[int]] = []

    def __len__(self) -> int:
        return self.rows

    def batch(self, rows: Any, *, full_length: bool = False) -> TextBatch:
        order = [int(row) for row in rows]
        self.served.append(order)
        queries = [[1, 2 + row % 9, *[50] * (row % 2), VOCABULARY - 1] for row in order]
        targets = [[1, 12 + row % 9, VOCABULARY - 1] for row in order]
        wrong = [[1, 12 + (row + k) % 9, VOCABULARY - 1] for row in order for k in range(1, self.negatives + 1)]
        least = CONTEXT if full_length else 0
        ids = [
            [100 + row % 9 + 50 * (row % 2), *(12 + (row + k) % 9 for k in range(self.negatives + 1))] for row in order
        ]
        return TextBatch(
            queries=texts_of(queries, least),
            targets=texts_of(targets, least),
            negatives=texts_of(wrong, least),
            text_ids=torch.tensor(ids),
        )


def make_stage(out: Path, changes: dict[str, Any] | None = None) -> StageRecipe:
    """The recipe of a short stage; keys of `optim`, of `texts` or of the stage."""
    rest = dict(changes or {})
    optim = {"lr": 3e-3, "batch_size": 8, "epochs": 2, "warmup_steps": 3, "grad_clip": 1.0}
    optim |= {key: rest.pop(key) for key in list(rest) if key in OptimSettings.model_fields}
    own = {key: rest.pop(key) for key in list(rest) if key in ("save_every_steps", "seed")}
    texts = {"leave_out_equal": rest.pop("leave_out_equal", True)}
    content = {"model": "tiny", "out": out, "data": {"dialogues": "nowhere", "work": "nowhere"}, "optim": optim, **own}
    content |= {"log": {"tensorboard": False}, "texts": texts, "stages": [STAGE | rest]}
    return MultitaskRecipe.model_validate(content).of_stage(1).model_copy(update={"out": out})


def train_stage(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    recipe = make_stage(out, changes)
    system = TextTuning(make_clip(), multitask_objective(recipe), recipe.optim)
    return fit(recipe, system, MultitaskBatches(recipe, TinyRows(), TinyTexts(), full_length=False), **options)
