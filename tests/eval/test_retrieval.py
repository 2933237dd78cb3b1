from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.retrieval import ranks_by_sorting
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dialog_eval.metrics.retrieval import hit_ranks, recall_at_k


def as_bool(relevant: Sequence[Sequence[int]], candidates: int) -> Tensor:
    pairs = torch.zeros(len(relevant), candidates, dtype=torch.bool)
    for query, indices in enumerate(relevant):
        pairs[query, list(indices)] = True
    return pairs


def test_worked_example() -> None:
    scores = torch.tensor(
        [
            [0.1, 0.9, 0.5, 0.5],  # best first: 1, 2, 3, 0
            [0.3, 0.3, 0.3, 0.3],  # all equal: 0, 1, 2, 3
            [0.0, 0.2, 0.8, -1.0],  # 2, 1, 0, 3
        ]
    )
    assert hit_ranks(scores, [[3], [3], [2]]).tolist() == [2, 3, 0]
    assert hit_ranks(scores, [[0, 3], [3, 1], [0, 3]]).tolist() == [2, 1, 2]
    assert recall_at_k(scores, [[0, 3], [3, 1], [0, 3]], [1, 2, 3, 4]) == {1: 0, 2: 1 / 3, 3: 1, 4: 1}
    assert recall_at_k(scores, torch.tensor([1, 0, 3]), [1, 100]) == {1: 2 / 3, 100: 1}


@given(st.data())
def test_against_sorting(data: st.DataObject) -> None:
    queries, candidates = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 7))
    values = st.one_of(st.integers(-2, 2).map(float), st.sampled_from([-np.inf, np.inf, 0.1, -0.0]))
    rows = st.lists(values, min_size=candidates, max_size=candidates)
    scores = torch.tensor(data.draw(st.lists(rows, min_size=queries, max_size=queries)))
    some = st.lists(st.integers(0, candidates - 1), min_size=1, max_size=4)
    relevant = data.draw(st.lists(some, min_size=queries, max_size=queries))
    wanted = ranks_by_sorting(scores, relevant)
    chunk = data.draw(st.integers(1, 7))
    assert hit_ranks(scores, relevant, chunk=chunk).tolist() == wanted
    assert hit_ranks(scores, as_bool(relevant, candidates), chunk=chunk).tolist() == wanted
    firsts = torch.tensor([indices[0] for indices in relevant])
    assert hit_ranks(scores, firsts, chunk=chunk).tolist() == ranks_by_sorting(scores, firsts[:, None].tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_every_type_of_scores(dtype: torch.dtype) -> None:
    scores = torch.randint(-9, 9, (40, 30), generator=torch.Generator().manual_seed(0)).to(dtype)
    relevant = [[query % 30, query // 2] for query in range(40)]
    assert hit_ranks(scores, relevant).tolist() == ranks_by_sorting(scores, relevant)


SCORES = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("scores", "relevant", "ks", "message"),
    [
        (torch.zeros(3), [[0]], [1], r"shape \(3,\)"),
        (SCORES, [[0]], [1], "2 queries, but relevant candidates for 1"),
        (SCORES, [[0], []], [1], "query 1 has no relevant"),
        (SCORES, [[0], [1, 3]], [1], r"query 1: of 3 candidates .* \[1, 3\]"),
        (SCORES, [[0], [-1]], [1], "query 1"),
        (SCORES, torch.tensor([0, 3]), [1], "query 1"),
        (SCORES, torch.tensor([0, -1]), [1], "query 1"),
        (SCORES, torch.tensor([0.0, 1.0]), [1], r"float32 of shape \(2,\)"),
        (SCORES, torch.tensor([[0], [1]]), [1], r"int64 of shape \(2, 1\)"),
        (SCORES, torch.tensor([[True, False, False], [False] * 3]), [1], "query 1 has no relevant"),
        (SCORES, torch.ones(2, 4, dtype=torch.bool), [1], r"bool of shape \(2, 4\)"),
        (SCORES, [[0], [0]], [5, 0], "k must be at least 1, got 0"),
        (torch.zeros(0, 3), [], [1], "no queries"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), [[0], [1]], [1], "NaN"),
    ],
)
def test_wrong_scores(scores: Tensor, relevant: Any, ks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(scores, relevant, ks)
