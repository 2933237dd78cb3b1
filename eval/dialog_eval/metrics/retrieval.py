"""Recall at k for retrieval, in bounded memory.

A query is a hit at k when ANY of its relevant candidates is among the k best, as in CLIP (arXiv 2103.00020) and
CLIP_benchmark. Everything derives from a query's hit rank: how many candidates come before its first relevant one,
0 for the best. Candidates with equal scores stand in the order of their indices (torch.topk leaves theirs open).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Relevant = Sequence[Sequence[int]] | Tensor
"""The candidates that count, in one of three forms: a sequence of indices for each query; a LongTensor (queries,) of
one index each; a bool tensor (queries, candidates)."""

Ranks = npt.NDArray[np.int64]

DEFAULT_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Both directions of image-text retrieval."""

    image_recall: dict[int, float]
    """k -> share of texts whose image is among the k best images"""
    text_recall: dict[int, float]
    """k -> share of images of which any text is among the k best texts"""
    image_ranks: Ranks
    """(texts,) hit rank of each text among the images"""
    text_ranks: Ranks
    """(images,) hit rank of each image among the texts"""


def recall_at_k(scores: Tensor, relevant: Relevant, ks: Iterable[int]) -> dict[int, float]:
    """For each k the share of queries, 0 to 1, that have any relevant candidate among their k best.

    `scores`: (queries, candidates), higher is better. A k beyond the number of candidates takes them all.

    Raises ValueError as `hit_ranks` does, and for a k below 1.
    """
    return recall_from_ranks(hit_ranks(scores, relevant), ks)


def recall_from_ranks(ranks: Ranks, ks: Iterable[int]) -> dict[int, float]:
    """For each k the share of queries with a hit rank below k.

    Raises ValueError where there is no query, and for a k below 1.
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
    """How many candidates come before each query's first relevant one: (queries,), 0 where a relevant one is best.

    `scores`: (queries, candidates), higher is better; infinities are allowed. `chunk` queries are looked at at once,
    in about 7 * chunk * candidates bytes beside the scores.

    Raises ValueError for scores that are not (queries, candidates) or hold NaN, for `relevant` that does not fit
    them, and for a query without a relevant candidate.
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
    chunk: int = DEFAULT_CHUNK,
) -> Retrieval:
    """Image retrieval (texts ask) and text retrieval (images ask) by the dot product of unit-norm vectors.

    `image_vectors`: (images, dim), `text_vectors`: (texts, dim), of any float type and on one device; products are
    taken in float32 at least. `text_to_image`: (texts,), the index of each text's image. Only `chunk` queries' scores
    exist at a time: beside the vectors (and a float32 copy of half-precision ones) it takes about 10 * chunk *
    candidates bytes, 64 MB for 25,000 candidates and the default chunk.

    Raises ValueError for shapes that do not fit, an image index out of range, an image without a text, vectors that
    hold NaN, and a k or chunk below 1.
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
    image_ranks = _ranks(lambda part: texts[part] @ images.T, text_to_image, chunk)
    text_ranks = _ranks(lambda part: images[part] @ texts.T, texts_of, chunk)
    ks = list(ks)
    return Retrieval(
        image_recall=recall_from_ranks(image_ranks, ks),
        text_recall=recall_from_ranks(text_ranks, ks),
        image_ranks=image_ranks,
        text_ranks=text_ranks,
    )


def _ranks(scores_of: Callable[[slice], Tensor], relevant: Relevant, chunk: int) -> Ranks:
    """The hit ranks of all queries; `scores_of` gives the scores of some, (queries of the slice, candidates)."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    ranks = np.empty(len(relevant), np.int64)
    for start in range(0, len(relevant), chunk):
        part = slice(start, start + chunk)
        ranks[part] = _ranks_of_chunk(scores_of(part), *_pairs(relevant, part), start)
    return ranks


def _ranks_of_chunk(scores: Tensor, rows: Tensor, columns: Tensor, start: int) -> Ranks:
    """The hit ranks of a chunk whose relevant pairs are (rows[i], columns[i]); every row has one."""
    if bool(torch.isnan(scores.amax())):
        raise ValueError(f"a score is NaN, in queries {start} to {start + len(scores) - 1}")
    rows, columns = rows.to(scores.device), columns.to(scores.device)
    values = scores[rows, columns]
    # The first relevant candidate: the best score of them, and of those that have it the lowest index.
    best = values.new_empty(len(scores)).scatter_reduce(0, rows, values, "amax", include_self=False)
    ties = values == best[rows]
    first = columns.new_empty(len(scores)).scatter_reduce(0, rows[ties], columns[ties], "amin", include_self=False)
    before = scores == best[:, None]
    before &= torch.arange(scores.shape[1], device=scores.device) < first[:, None]
    before |= scores > best[:, None]
    return before.sum(1, dtype=torch.int32).cpu().numpy()


def _pairs(relevant: Relevant, part: slice) -> tuple[Tensor, Tensor]:
    """Query (counted from the slice's start) and candidate of each relevant pair."""
    of_part = relevant[part]
    if not isinstance(of_part, Tensor):
        rows = torch.tensor([row for row, indices in enumerate(of_part) for _ in indices])
        return rows, torch.tensor([index for indices in of_part for index in indices])
    if of_part.dtype == torch.bool:
        rows, columns = of_part.nonzero(as_tuple=True)
        return rows, columns
    return torch.arange(len(of_part)), of_part


def _check_relevant(relevant: Relevant, queries: int, candidates: int) -> None:
    """Raises ValueError unless `relevant` gives each query a candidate, and none that does not exist."""
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
