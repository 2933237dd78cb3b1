"""Chooses the weights of a way of asking on held-out dialogues, by the share of answers that are the dialogue's own.

A held-out question gets 18 candidates, as VQAv1's multiple choice has: the dialogue's answer, others that the dialogues
give to such questions, and the most frequent answers of all.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dialog_eval.asking.scores import Asking, Question, score
from dialog_eval.asking.ways import Way, Weights
from dialog_eval.data.vqa import CHOICES
from dialog_train.asking.questions import answer_key

if TYPE_CHECKING:
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models

PRIOR_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
DEBIAS_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)

_LIKELY = 9
"""Number of candidates that are answers to such questions, the right one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The weights of a way of asking for one model, and how well each did."""

    weights: Weights
    tried: list[tuple[Weights, float]]
    """Weights and the share (0 to 1) of right answers; empty if no weight had to be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Questions of held-out dialogues. The right answer of each is the candidate with the index in `right`."""

    questions: list[Question]
    right: npt.NDArray[np.int64]
    images: "ImageVectors"


def held_out_questions(
    pairs: Iterable[tuple[str, str, str]], answers_of: Callable[[str], Counter[str]]
) -> tuple[list[Question], npt.NDArray[np.int64]]:
    """Questions with 18 candidates each, and the index of the right one, from (image id, question, answer).

    `answers_of`: a question -> the answers that others like it had, with counts. If the dialogues have fewer than 18
    distinct answers, all of them are candidates. No question is returned if there is only one answer.
    """
    listed = list(pairs)
    common = Counter(answer_key(answer) for _, _, answer in listed)
    most = [answer for answer, _ in common.most_common()]
    questions, right = list[Question](), list[int]()
    size = min(CHOICES, len(most))
    for image, text, answer in listed:
        likely = [other for other, _ in answers_of(text).most_common(CHOICES)]
        own = answer_key(answer)
        chosen = list(dict.fromkeys([own, *likely[:_LIKELY], *most, *likely]))[:size]
        if size < 2:
            break
        random.Random(f"{image}/{text}").shuffle(chosen)
        questions.append(Question(image, text, tuple(chosen)))
        right.append(chosen.index(own))
    return questions, np.array(right, np.int64)


def choose_weights(
    models: "Models",
    held_out: HeldOut,
    asking: Asking,
    fixed: Sequence[tuple[float | None, float | None]],
    *,
    advance: Callable[[int], None] = lambda questions: None,
) -> list[list[Choice]]:
    """The best weights of each way, for each variant: (ways, variants). Among equals the smallest are chosen.

    `fixed`: of each way the given weights (debias, prior); None for one to choose.
    """
    grids = [_grid(way, *given) for way, given in zip(asking.ways, fixed, strict=True)]
    hits = [np.zeros((len(models.variants), len(grid))) for grid in grids]
    for scored in score(models, held_out.images, held_out.questions, asking, advance=advance):
        right = held_out.right[scored.questions]
        for way, grid, found in zip(asking.ways, grids, hits, strict=True):
            for place, weights in enumerate(grid):
                best = scored.total(way, weights)[..., 0].argmax(dim=1).cpu().numpy()
                found[scored.variant, place] += (best == right).sum()
    return [
        [
            Choice(
                weights=grid[int(of_variant.argmax())],
                tried=[
                    (weights, float(count / len(held_out.questions)))
                    for weights, count in zip(grid, of_variant, strict=True)
                ],
            )
            for of_variant in found
        ]
        for grid, found in zip(grids, hits, strict=True)
    ]


def _grid(way: Way, debias: float | None, prior: float | None) -> list[Weights]:
    """The weights to try, smallest first."""
    first = (DEBIAS_WEIGHTS if debias is None else (debias,)) if way.debias else (0.0,)
    second = (PRIOR_WEIGHTS if prior is None else (prior,)) if way.prior else (0.0,)
    return [Weights(debias=d, prior=p) for d, p in itertools.product(first, second)]
