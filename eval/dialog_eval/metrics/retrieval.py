"""Recall at k for retrieval, in bounded memory.

A query is a hit at k if ANY of its relevant candidates is among the k best, as in CLIP (arXiv 2103.00020) and
CLIP_benchmark. Everything is derived from a query's hit rank: the number of candidates before its first relevant one, 0
if a relevant one is best. Candidates with equal scores are ranked by index (torch.topk leaves their order open).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Relevant = Sequence[Sequence[int]] | Tensor
"""The relevant candidates, in one of three forms: a sequence of indices per query; a LongTensor (queries,) with one
index per query; a bool tensor (queries, candidates)."""

Ranks = npt.NDArray[np.int64]

DEFAULT_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Both directions of image-text retrieval."""

    image_recall: dict[int, float]
    """k -> share of texts whose image is among the k best images"""
    text_recall: dict[int, float]
    """k -> share of images for which any of their texts is among the k best texts"""
    image_ranks: Ranks
    """(texts,) hit rank of each text's image among the images"""
    text_ranks: Ranks
    """(images,) hit rank of each image's best text among the texts"""


def recall_at_k(scores: Tensor, relevant: Relevant, ks: Iterable[int]) -> dict[int, float]:
    """For each k the share (0 to 1) of queries that have any relevant candidate among their k best.

    `scores`: (queries, candidates), higher is better. If k exceeds the number of candidates, all of them are used.

    Raises ValueError as `hit_ranks` does, and for a k below 1.
    """
    return recall_from_ranks(hit_ranks(scores, relevant), ks)


def recall_from_ranks(ranks: Ranks, ks: Iterable[int]) -> dict[int, float]:
    """For each k the share (0 to 1) of queries with a hit rank below k.

    Raises ValueError if there is no query, and for a k below 1.
    """
    if ranks.size == 0:
        raise ValueError("recall of no queries: there is nothing to average")
    recall: dict[int, float] = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        recall[k] = float(np.mean(ranks < k))
    return recall


def hit_ranks(scores: Tensor, relevant: Relevant, *, chunk: int = DEFAULT_CHUNK) -> Ranks:
    """The hit rank of each query (queries,): the number of candidates before its first relevant one.

    `scores`: (queries, candidates), higher is better; infinities are allowed. `chunk` queries are processed at a time,
    which needs about 7 * chunk * candidates bytes in addition to the scores.

    Raises ValueError for scores that are not (queries, candidates) or contain NaN, for `relevant` of another form, and
    for a query without a relevant candidate.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be (queries, candidates), got a tensor of shape {tuple(scores.shape)}")
    _check_relevant(relevant, *scores.shape)
    return _ranks(lambda part: scores[part], relevant, chunk)


def retrieve(
    image_vectors: Tensor,
    text_vectors: Tensor,
    text_to_image: Tensor,
    ks: Iterable[int],
    *,
    image_bias: Tensor | None = None,
    text_bias: Tensor | None = None,
    chunk: int = DEFAULT_CHUNK,
) -> Retrieval:
    """Image retrieval (texts are queries) and text retrieval (images are queries) by the dot product of vectors.

    `image_bias` (images,) and `text_bias` (texts,) are subtracted from the scores of a candidate for all queries.

    `image_vectors`: (images, dim), `text_vectors`: (texts, dim), unit-norm, of any float type and on one device;
    products are computed in float32 or float64. `text_to_image`: (texts,), the index of each text's image. Only the
    scores of `chunk` queries are in memory at a time: in addition to the vectors (and a float32 copy of half-precision
    ones) this needs about 10 * chunk * candidates bytes, 64 MB for 25,000 candidates and the default chunk.

    Raises ValueError for shapes that do not match, an image index out of range, an image without a text, vectors that
    contain NaN, and a k or chunk below 1.
    """
    if image_vectors.ndim != 2 or text_vectors.ndim != 2 or image_vectors.shape[1] != text_vectors.shape[1]:
        shapes = f"{tuple(image_vectors.shape)} and {tuple(text_vectors.shape)}"
        raise ValueError(f"image and text vectors must be (images, dim) and (texts, dim), got {shapes}")
    if text_to_image.ndim != 1:
        raise ValueError(f"text_to_image must be (texts,), got a tensor of shape {tuple(text_to_image.shape)}")
    _check_relevant(text_to_image, len(text_vectors), len(image_vectors))
    texts_of: list[list[int]] = [[] for _ in range(len(image_vectors))]
    for text, image in enumerate(text_to_image.tolist()):
        texts_of[image].append(text)
    if [] in texts_of:
        raise ValueError(f"image {texts_of.index([])} has no text")
    images, texts = (v if v.dtype == torch.float64 else v.float() for v in (image_vectors, text_vectors))
    image_ranks = _ranks(lambda part: _debiased(texts[part] @ images.T, image_bias), text_to_image, chunk)
    text_ranks = _ranks(lambda part: _debiased(images[part] @ texts.T, text_bias), texts_of, chunk)
    ks = list(ks)
    return Retrieval(
        image_recall=recall_from_ranks(image_ranks, ks),
        text_recall=recall_from_ranks(text_ranks, ks),
        image_ranks=image_ranks,
        text_ranks=text_ranks,
    )


def _debiased(scores: Tensor, bias: Tensor | None) -> Tensor:
    return scores if bias is None else scores.sub_(bias)


def _ranks(scores_of: Callable[[slice], Tensor], relevant: Relevant, chunk: int) -> Ranks:
    """The hit ranks (queries,) of all queries; `scores_of` returns the scores (queries, candidates) of a slice."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    ranks = np.empty(len(relevant), np.int64)
    for start in range(0, len(relevant), chunk):
        part = slice(start, start + chunk)
        ranks[part] = _ranks_of_chunk(scores_of(part), *_pairs(relevant, part), start)
    return ranks


def _ranks_of_chunk(scores: Tensor, rows: Tensor, columns: Tensor, start: int) -> Ranks:
    """The hit ranks of a chunk with the relevant pairs (rows[i], columns[i]); every row has at least one."""
    if bool(torch.isnan(scores.amax())):
        raise ValueError(f"a score is NaN, in queries {start} to {start + len(scores) - 1}")
    rows, columns = rows.to(scores.device), columns.to(scores.device)
    values = scores[rows, columns]
    # The first relevant candidate is the one with the best score and, among equals, the lowest index.
    best = values.new_empty(len(scores)).scatter_reduce(0, rows, values, "amax", include_self=False)
    ties = values == best[rows]
    first = columns.new_empty(len(scores)).scatter_reduce(0, rows[ties], columns[ties], "amin", include_self=False)
    before = scores == best[:, None]
    before &= torch.arange(scores.shape[1], device=scores.device) < first[:, None]
    before |= scores > best[:, None]
    return before.sum(1, dtype=torch.int32).cpu().numpy()


def _pairs(relevant: Relevant, part: slice) -> tuple[Tensor, Tensor]:
    """The query (counted from the start of the slice) and the candidate of each relevant pair."""
    of_part = relevant[part]
    if not isinstance(of_part, Tensor):
        rows = torch.tensor([row for row, indices in enumerate(of_part) for _ in indices])
        return rows, torch.tensor([index for indices in of_part for index in indices])
    if of_part.dtype == torch.bool:
        rows, columns = of_part.nonzero(as_tuple=True)
        return rows, columns
    return torch.arange(len(of_part)), of_part


def _check_relevant(relevant: Relevant, queries: int, candidates: int) -> None:
    """Raises ValueError unless every query has a relevant candidate and all candidates exist."""
    if len(relevant) != queries:
        raise ValueError(f"{queries} queries, but relevant candidates for {len(relevant)}")
    if not isinstance(relevant, Tensor):
        indices_of = relevant
    elif relevant.dtype == torch.bool and relevant.shape == (queries, candidates):
        indices_of = [[0] * some for some in relevant.any(1).tolist()]
    elif relevant.dtype == torch.long and relevant.ndim == 1:
        indices_of = [[index] for index in relevant.tolist()]
    else:
        what = f"{relevant.dtype} of shape {tuple(relevant.shape)}"
        raise ValueError(f"relevant must be int64 ({queries},) or bool ({queries}, {candidates}), got {what}")
    for query, indices in enumerate(indices_of):
        if len(indices) == 0:
            raise ValueError(f"query {query} has no relevant candidate")
        if min(indices) < 0 or max(indices) >= candidates:
            raise ValueError(f"query {query}: of {candidates} candidates one is said to be among {list(indices)}")
