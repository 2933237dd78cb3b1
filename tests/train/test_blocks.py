"""Losses of all pairs, in blocks and over processes, against their plain forms over whole matrices, in float64."""

import os
from typing import Any

import pytest
import torch
from helpers import pair_losses
from helpers.forks import run_together
from helpers.pair_losses import COUNT, PLAIN_AND_OWN, inputs, with_gradients
from helpers.trainings import places
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dialog_train.losses.base import LOSSES


def test_every_registered_loss_is_tested() -> None:
    assert set(LOSSES.own()) <= set(PLAIN_AND_OWN)


@pytest.mark.parametrize("name", PLAIN_AND_OWN)
@pytest.mark.parametrize("rows", [COUNT, 5, 1])
def test_blocks_equal_the_plain_form(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    columns = 2 * COUNT if name == "info nce" else COUNT
    monkeypatch.setattr("dialog_train.losses.blocks._PAIRS", rows * columns)
    plain, own = PLAIN_AND_OWN[name]
    torch.testing.assert_close(with_gradients(own, inputs()), with_gradients(plain, inputs()), rtol=1e-10, atol=1e-10)


class Largest(TorchDispatchMode):
    """Records the largest tensor, in values, that an operation gives."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.values = max([self.values, *sizes])
        return found


@pytest.mark.parametrize("name", sorted(PLAIN_AND_OWN.keys() - {"info nce"}))
def test_no_matrix_of_all_pairs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    count = 400
    monkeypatch.setattr("dialog_train.losses.blocks._PAIRS", 20 * count)
    with Largest() as largest:
        with_gradients(PLAIN_AND_OWN[name][1], inputs(count))
    assert 0 < largest.values <= 4 * 20 * count < count**2 / 4


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_the_plain_form(processes: int) -> None:
    given = [{**os.environ, **place} for place in places(processes, 1)]
    done = run_together(pair_losses.check_over_processes, environments=given)
    assert [process.returncode for process in done] == [0] * processes, done[0].stderr
