"""Which candidate answer scores best for each question, in bounded memory.

The same text comes only from the same question, so questions are taken by their text, some thousand texts at a time:
each distinct text of such a bundle is encoded once, and then forgotten.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from dialog_eval.data.images import ImageVectors
from dialog_eval.models import Models

Calibration = Literal["none", "mean-image", "text"]
Indices = npt.NDArray[np.int64]

# A bundle is full with so many texts, or places of candidates among them. Vectors are gathered for so many candidates.
_TEXTS = 16_384
_PLACES = 1 << 22
_GATHERED = 16_384


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about an image."""

    image_id: str
    """The source's."""
    question: str
    candidates: tuple[str, ...]
    """As many for every question."""


def best_candidates(
    models: Models,
    images: ImageVectors,
    questions: Sequence[Asked],
    *,
    text_format: str,
    calibration: Calibration = "none",
    advance: Callable[[int], None] = lambda questions: None,
) -> Indices:
    """(variants, 2, questions): the index of the best of a question's candidates; of equal ones the first.

    A candidate's score is the cosine of the image with `text_format` with {user} and {assistant} filled in. Subtracted
    is, with calibration "mean-image", its cosine with the mean image, and with "text", with the question alone.

    The second of the 2 is the blind run: it sees the mean image (of unit length, of each image once) in every image's
    place. The mean image does not calibrate it: all its scores would be 0.
    """
    chosen = np.empty((len(models.variants), 2, len(questions)), np.int64)
    rows = torch.tensor([images.rows[asked.image_id] for asked in questions], device=models.device)
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
    """Text -> its place."""
    questions: list[int] = field(default_factory=list[int])
    candidates: list[Indices] = field(default_factory=list[Indices])
    """Of each question, (C,): the places of its candidates' texts."""
    alone: list[int] = field(default_factory=list[int])
    """Of each question, the place of its own text."""
    places: int = 0

    def add(self, question: str, asked: dict[int, tuple[str, ...]], text_format: str) -> None:
        """All questions with this text: their numbers and candidates."""
        alone = self._place(question)
        # Questions with the same candidates share the list of their places.
        known: dict[tuple[str, ...], Indices] = {}
        for number, candidates in asked.items():
            if candidates not in known:
                texts = (text_format.format(user=question, assistant=answer) for answer in candidates)
                known[candidates] = np.array([self._place(text) for text in texts])
                self.places += len(candidates)
            self.questions.append(number)
            self.candidates.append(known[candidates])
            self.alone.append(alone)

    def parts(self) -> Iterator[slice]:
        """A few questions at a time."""
        step = max(1, _GATHERED // len(self.candidates[0]))
        return (slice(start, start + step) for start in range(0, len(self.questions), step))

    def _place(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def _bundles(questions: Sequence[Asked], text_format: str) -> Iterator[_Bundle]:
    by_text = defaultdict[str, dict[int, tuple[str, ...]]](dict)
    for number, asked in enumerate(questions):
        by_text[asked.question][number] = asked.candidates
    bundle = _Bundle()
    for question, asked in by_text.items():
        bundle.add(question, asked, text_format)
        if len(bundle.texts) >= _TEXTS or bundle.places >= _PLACES:
            yield bundle
            bundle = _Bundle()
    if bundle.questions:
        yield bundle
