"""Finds the best-scoring candidate answer of each question, in bounded memory.

Questions with the same wording share their texts. So questions are grouped by their wording and processed in bundles of
some thousand texts: each distinct text of a bundle is encoded once and then discarded.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

# torch is imported inside the function: task modules import `Calibration` from here, and --help imports them.
if TYPE_CHECKING:
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models

Calibration = Literal["none", "mean-image", "text"]
Indices = npt.NDArray[np.int64]

# A bundle is complete with this many texts, or with this many candidate indices.
_TEXTS_PER_BUNDLE = 16_384
_INDICES_PER_BUNDLE = 1 << 22
# Text vectors are gathered for this many candidates at a time.
_CANDIDATES_PER_GATHER = 16_384


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image, with its candidate answers."""

    image_id: str
    """Its id in the image index."""
    text: str
    candidates: tuple[str, ...]
    """All questions have the same number of candidates."""


def best_candidates(
    models: "Models",
    images: "ImageVectors",
    questions: Sequence[Question],
    *,
    text_format: str,
    calibration: Calibration = "none",
    advance: Callable[[int], None] = lambda questions: None,
) -> Indices:
    """The index of each question's best candidate, (variants, 2, questions); of equal candidates, the first.

    A candidate's score is the cosine of the image and the text, which is `text_format` with {user} and {assistant}
    filled in. Calibration "mean-image" subtracts the text's cosine with the mean image; "text" subtracts its cosine
    with the question alone.

    In the second dimension, 0 is the normal run and 1 the blind run, which sees the mean image in place of every image.
    The mean is taken over distinct images and has unit length. The blind run is not calibrated by the mean image
    because all its scores would be 0. `advance` is called with the number of questions finished since the last call.
    """
    import torch
    from torch.nn.functional import normalize

    chosen = np.empty((len(models.variants), 2, len(questions)), np.int64)
    rows = torch.tensor([images.rows[question.image_id] for question in questions], device=models.device)
    means = [normalize(vectors[rows.unique()].mean(dim=0), dim=0) for vectors in images.vectors]
    for bundle in _bundles(questions, text_format):
        encoded = models.encode_texts(list(bundle.texts))
        for variant, best in zip(models.variants, chosen, strict=True):
            texts = models.text_vectors(variant, encoded)
            mean = means[variant.image_tower]
            for part in bundle.parts():
                own = bundle.questions[part]
                seen = images.vectors[variant.image_tower][rows[own]]  # (Q, D)
                queries = torch.stack([seen, mean.expand_as(seen)], dim=-1)  # (Q, D, 2)
                if calibration == "mean-image":
                    queries[..., 0] -= mean
                elif calibration == "text":
                    queries -= texts[bundle.alone[part]][..., None]
                candidates = texts[torch.from_numpy(np.stack(bundle.candidates[part])).to(texts.device)]  # (Q, C, D)
                best[:, own] = (candidates @ queries).argmax(dim=1).T.cpu().numpy()
        advance(len(bundle.questions))
    return chosen


@dataclass(slots=True)
class _Bundle:
    texts: dict[str, int] = field(default_factory=dict[str, int])
    """Text -> its index."""
    questions: list[int] = field(default_factory=list[int])
    candidates: list[Indices] = field(default_factory=list[Indices])
    """For each question (C,): the indices of its candidates' texts."""
    alone: list[int] = field(default_factory=list[int])
    """For each question, the index of the question's own text."""
    places: int = 0

    def add(self, question: str, candidates_of: dict[int, tuple[str, ...]], text_format: str) -> None:
        """Adds all questions with the same wording. `candidates_of`: number of a question -> its candidates."""
        alone = self._place(question)
        # Questions with the same candidates share one array of indices.
        known: dict[tuple[str, ...], Indices] = {}
        for number, candidates in candidates_of.items():
            if candidates not in known:
                texts = (text_format.format(user=question, assistant=answer) for answer in candidates)
                known[candidates] = np.array([self._place(text) for text in texts])
                self.places += len(candidates)
            self.questions.append(number)
            self.candidates.append(known[candidates])
            self.alone.append(alone)

    def parts(self) -> Iterator[slice]:
        """Slices of questions that have few enough candidates to gather."""
        step = max(1, _CANDIDATES_PER_GATHER // len(self.candidates[0]))
        return (slice(start, start + step) for start in range(0, len(self.questions), step))

    def _place(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def _bundles(questions: Sequence[Question], text_format: str) -> Iterator[_Bundle]:
    by_text = defaultdict[str, dict[int, tuple[str, ...]]](dict)
    for number, question in enumerate(questions):
        by_text[question.text][number] = question.candidates
    bundle = _Bundle()
    for text, candidates in by_text.items():
        bundle.add(text, candidates, text_format)
        if len(bundle.texts) >= _TEXTS_PER_BUNDLE or bundle.places >= _INDICES_PER_BUNDLE:
            yield bundle
            bundle = _Bundle()
    if bundle.questions:
        yield bundle
