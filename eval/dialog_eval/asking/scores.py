"""Scores the candidate answers of questions by several ways of asking, in bounded memory.

Questions with the same wording share their texts. So questions are grouped by their wording and processed in bundles of
some thousand texts: each distinct text of a bundle is encoded once and then discarded.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dialog_eval.asking.debias import mean_of_nearest
from dialog_eval.asking.ways import Calibration, TextForm, Way, Weights
from dialog_train.asking.questions import fits
from dialog_train.asking.sentences import RULES, Sentences

if TYPE_CHECKING:
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

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


class Prior(Protocol):
    """What is likely without an image: `dialog_train.asking.prior.AnswerPrior`, or `TextPrior`."""

    def log_probabilities(self, question: str, answers: Sequence[str]) -> Floats:
        """Log P(answer | question) for each answer, (answers,)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """The ways of asking, and what their parts need."""

    text_format: str
    """Of the text form "similarity": {user} and {assistant} are filled in."""
    ways: tuple[Way, ...] = (Way(),)
    references: "Mapping[Calibration, list[Tensor]]" = field(default_factory=dict[Calibration, list[Tensor]])
    """For "nearest" and "null-image", if a way subtracts them: reference images (R, D) of each image tower."""
    prior: Prior | None = None
    sentences: Sentences = RULES
    """Of the text form "statement": how the generator of the dialogues states answers."""

    def text(self, form: TextForm, question: str, answer: str) -> str:
        """The text of a candidate."""
        if form == "statement":
            return self.sentences.statement(question, answer)
        return self.text_format.format(user=question, assistant=answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The parts of the scores of one model's candidates for some questions (Q), each with C candidates."""

    variant: int
    """Index into `Models.variants`."""
    logit_scale: float
    questions: list[int]
    """The numbers (Q) of the questions."""
    cosine: dict[TextForm, Tensor]
    """(Q, C, 2): the normal run, and the blind run, which sees the mean image in place of every image."""
    bias: dict[tuple[TextForm, Calibration], Tensor]
    """(Q, C, 2): what the ways' debias subtracts."""
    log_prior: Tensor | None
    """(Q, C)"""
    fits: Tensor | None
    """(Q, C): whether the candidate's form answers the question; True for all candidates if it is for none."""

    def total(self, way: Way, weights: Weights) -> Tensor:
        """The scores (Q, C, 2); -inf for candidates that the filter leaves out."""
        score = self.cosine[way.text]
        if way.debias is not None:
            score = score - weights.debias * self.bias[way.text, way.debias]
        if way.prior and self.log_prior is not None:
            score = self.logit_scale * score + weights.prior * self.log_prior[..., None]
        if way.filter and self.fits is not None:
            score = score.masked_fill(~self.fits[..., None], float("-inf"))
        return score


def best_candidates(
    models: "Models",
    images: "ImageVectors",
    questions: Sequence[Question],
    asking: Asking,
    weights: Sequence[Sequence[Weights]],
    *,
    advance: Callable[[int], None] = lambda questions: None,
) -> Indices:
    """The index of each question's best candidate, (ways, variants, 2, questions); of equal candidates, the first.

    `weights`: of each way, and of each variant. In the third dimension, 0 is the normal run and 1 the blind run.
    `advance` is called with the number of questions finished since the last call.
    """
    chosen = np.empty((len(asking.ways), len(models.variants), 2, len(questions)), np.int64)
    for scored in score(models, images, questions, asking, advance=advance):
        for number, way in enumerate(asking.ways):
            total = scored.total(way, weights[number][scored.variant])
            chosen[number, scored.variant][:, scored.questions] = total.argmax(dim=1).T.cpu().numpy()
    return chosen


def score(
    models: "Models",
    images: "ImageVectors",
    questions: Sequence[Question],
    asking: Asking,
    *,
    advance: Callable[[int], None] = lambda questions: None,
) -> Iterator[Scored]:
    """Yields the parts of all scores, for some questions and one variant at a time.

    The mean image is taken over distinct images and has unit length. The blind run is not calibrated by the mean image
    because all its scores would be 0.
    """
    rows = torch.tensor([images.rows[question.image_id] for question in questions], device=models.device)
    means = [normalize(vectors[rows.unique()].mean(dim=0), dim=0) for vectors in images.vectors]
    debiased: set[tuple[TextForm, Calibration]] = {
        (way.text, way.debias) for way in asking.ways if way.debias is not None
    }
    scales = [float(variant.clip.model.logit_scale.detach().exp()) for variant in models.variants]
    for bundle in _bundles(questions, asking):
        encoded = models.encode_texts(list(bundle.texts))
        for number, variant in enumerate(models.variants):
            texts, mean = models.text_vectors(variant, encoded, questions=True), means[variant.image_tower]
            of_texts = {
                calibration: _bias_of_texts(texts, mean, calibration, asking, variant.image_tower)
                for _, calibration in debiased
                if calibration != "text"
            }
            for part in bundle.parts():
                own, sets = bundle.questions[part], bundle.sets[part]
                seen = images.vectors[variant.image_tower][rows[own]]  # (Q, D)
                queries = torch.stack([seen, mean.expand_as(seen)], dim=-1)  # (Q, D, 2)
                cosine, bias = dict[TextForm, Tensor](), dict[tuple[TextForm, Calibration], Tensor]()
                for form in bundle.forms:
                    places = torch.from_numpy(np.stack([one.places[form] for one in sets])).to(texts.device)
                    candidates = texts[places]  # (Q, C, D)
                    cosine[form] = candidates @ queries
                    for text, calibration in debiased:
                        if text != form:
                            continue
                        if calibration == "text":
                            alone = texts[bundle.alone[part]]  # (Q, D)
                            bias[form, calibration] = (candidates @ alone[..., None]).expand(-1, -1, 2)
                        else:
                            bias[form, calibration] = of_texts[calibration][places]
                yield Scored(
                    variant=number,
                    logit_scale=scales[number],
                    questions=own,
                    cosine=cosine,
                    bias=bias,
                    log_prior=_stacked([one.log_prior for one in sets], texts),
                    fits=_stacked([one.fits for one in sets], texts),
                )
        advance(len(bundle.questions))


def _bias_of_texts(texts: Tensor, mean: Tensor, calibration: Calibration, asking: Asking, image_tower: int) -> Tensor:
    """What debias subtracts from each text's scores (texts, 2), whatever the question."""
    if calibration == "mean-image":
        bias = texts @ mean
        return torch.stack([bias, torch.zeros_like(bias)], dim=-1)
    return mean_of_nearest(texts, asking.references[calibration][image_tower])[:, None].expand(-1, 2)


def _stacked(arrays: "list[npt.NDArray[np.generic] | None]", like: Tensor) -> Tensor | None:
    there = [array for array in arrays if array is not None]
    if not there:
        return None
    stacked = torch.from_numpy(np.stack(there))
    return (stacked.to(like.dtype) if stacked.is_floating_point() else stacked).to(like.device)


@dataclass(frozen=True, slots=True)
class _Set:
    """The candidates (C) of a question text."""

    places: Mapping[TextForm, Indices]
    """The indices of their texts."""
    log_prior: Floats | None
    fits: npt.NDArray[np.bool_] | None


@dataclass(slots=True)
class _Bundle:
    asking: Asking
    texts: dict[str, int] = field(default_factory=dict[str, int])
    """Text -> its index."""
    questions: list[int] = field(default_factory=list[int])
    sets: list[_Set] = field(default_factory=list[_Set])
    """The candidates of each question; questions with the same text and candidates share them."""
    alone: list[int] = field(default_factory=list[int])
    """For each question, the index of the question's own text."""
    places: int = 0

    @property
    def forms(self) -> list[TextForm]:
        """The forms of texts that the ways need."""
        return list(dict.fromkeys(way.text for way in self.asking.ways))

    def add(self, question: str, candidates_of: dict[int, tuple[str, ...]]) -> None:
        """Adds all questions with the same wording. `candidates_of`: number of a question -> its candidates."""
        alone = self._place(question)
        known: dict[tuple[str, ...], _Set] = {}
        for number, candidates in candidates_of.items():
            if candidates not in known:
                known[candidates] = self._set(question, candidates)
            self.questions.append(number)
            self.sets.append(known[candidates])
            self.alone.append(alone)

    def parts(self) -> Iterator[slice]:
        """Slices of questions that have few enough candidates to gather."""
        first, *_ = self.sets[0].places.values()
        step = max(1, _CANDIDATES_PER_GATHER // len(first))
        return (slice(start, start + step) for start in range(0, len(self.questions), step))

    def _set(self, question: str, candidates: tuple[str, ...]) -> _Set:
        places: dict[TextForm, Indices] = {}
        for form in self.forms:
            texts = (self.asking.text(form, question, answer) for answer in candidates)
            places[form] = np.array([self._place(text) for text in texts])
            self.places += len(candidates)
        log_prior = fitting = None
        if self.asking.prior is not None and any(way.prior for way in self.asking.ways):
            log_prior = self.asking.prior.log_probabilities(question, candidates)
        if any(way.filter for way in self.asking.ways):
            fitting = np.array([fits(question, answer) for answer in candidates])
            fitting |= not fitting.any()
        return _Set(places, log_prior, fitting)

    def _place(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def _bundles(questions: Sequence[Question], asking: Asking) -> Iterator[_Bundle]:
    by_text = defaultdict[str, dict[int, tuple[str, ...]]](dict)
    for number, question in enumerate(questions):
        by_text[question.text][number] = question.candidates
    bundle = _Bundle(asking)
    for text, candidates in by_text.items():
        bundle.add(text, candidates)
        if len(bundle.texts) >= _TEXTS_PER_BUNDLE or bundle.places >= _INDICES_PER_BUNDLE:
            yield bundle
            bundle = _Bundle(asking)
    if bundle.questions:
        yield bundle
