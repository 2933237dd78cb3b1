"""The values of steps that have not the same losses."""

import pytest
import torch

from dialog_train.readings import FiniteGuard, NotFiniteError, StepValues, Sums


def values(**found: float) -> StepValues:
    return StepValues({name: torch.tensor(value) for name, value in found.items()}, {})


def test_means_of_steps_with_different_losses() -> None:
    sums = Sums()
    sums.add(values(text_loss=1.0, loss=1.0), {})
    sums.add(values(image_loss=5.0, loss=5.0), {})
    assert sums.means()["loss"] == 3


def test_names_what_was_not_finite_first() -> None:
    guard = FiniteGuard(torch.device("cpu"))
    guard.check(0, values(a=1.0))
    guard.require_finite()
    guard.check(1, values(a=1.0, b=float("nan")))
    guard.check(2, values(a=float("inf")))
    guard.check(3, values(a=1.0, b=1.0))
    with pytest.raises(NotFiniteError, match=r"^b is nan$") as caught:
        guard.require_finite()
    assert caught.value.step == 1
    assert guard.found_inf == 1
