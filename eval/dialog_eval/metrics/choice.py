"""Rules of benchmarks that compare a few images with a few texts: an item passes a rule or does not.

A rule reads the scores of items of one shape: `between` (items, images, texts), the similarity of each image with each
text, and `texts` (items, texts, texts), the similarity of each text with each. All comparisons are strict: a tie fails.

In a choice, the item has one image; its first `right` texts are true and the others false. In a group (Winoground,
arXiv 2204.03162), the item has two images and two texts; text i belongs to image i.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

Rule = Callable[["Scores"], Tensor]
"""Maps scores to bool (items,): whether each item passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The scores of items that have the same numbers of images, of texts and of right texts."""

    between: Tensor
    """(items, images, texts)"""
    texts: Tensor
    """(items, texts, texts)"""
    right: int = 1
    """Number of right texts of a choice."""


def choice(scores: Scores) -> Tensor:
    """Every right text is more similar to the image than every wrong one."""
    image = scores.between[:, 0]  # (items, texts)
    return image[:, : scores.right].amin(1) > image[:, scores.right :].amax(1)


def texts_alone(scores: Scores) -> Tensor:
    """The right texts are more similar to each other than to any wrong one; the image is not looked at."""
    right = scores.texts[:, : scores.right]  # (items, right, texts)
    rows, columns = torch.triu_indices(scores.right, scores.right, 1)
    return right[:, rows, columns].amin(1) > right[:, :, scores.right :].amax((1, 2))


def text_score(scores: Scores) -> Tensor:
    """For each image, its own text is the more similar of the two."""
    return _own(scores) & (scores.between[:, 0, 0] > scores.between[:, 0, 1])


def image_score(scores: Scores) -> Tensor:
    """For each text, its own image is the more similar of the two."""
    between = scores.between
    return (between[:, 0, 0] > between[:, 1, 0]) & (between[:, 1, 1] > between[:, 0, 1])


def group_score(scores: Scores) -> Tensor:
    """Both the text score and the image score are right."""
    return text_score(scores) & image_score(scores)


def _own(scores: Scores) -> Tensor:
    return scores.between[:, 1, 1] > scores.between[:, 1, 0]


def chance(rule: str, texts: int, right: int) -> float:
    """The probability that an item with random scores passes a rule, which is named by its function.

    Of a choice, `texts` is the number of texts and `right` that of the right ones; all orders are equally likely.
    """
    if rule == "choice":
        return 1 / comb(texts, right)
    if rule == "texts_alone":
        return _chance_of_texts_alone(texts, right)
    return {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}[rule]


def _chance_of_texts_alone(texts: int, right: int) -> float:
    """All similarities of two right texts come before all of a right and a wrong one."""
    alike, unlike = comb(right, 2), right * (texts - right)
    return 1 / comb(alike + unlike, alike)
