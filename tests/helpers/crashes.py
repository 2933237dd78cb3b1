"""Processes that end without a last word."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest

from dialog_gen.dataset.writer import DatasetWriter

CRASHED = 9


def crash_at(number: int, out: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that ends the process at the `number`-th file that it touches under `out`."""
    seen = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
        if touches and str(arguments[0]).startswith(out) and next(seen) == number:
            os._exit(CRASHED)

    return hook


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(patch: pytest.MonkeyPatch, die_at: float, *, before: bool) -> Callable[[], int]:
    """Counts what changes a dataset folder; dies at step `die_at`, before it is done or after."""
    done = 0

    def wrap(method: str) -> None:
        real = getattr(DatasetWriter, method)

        def step(*arguments: Any) -> None:
            nonlocal done
            if done == die_at and before:
                raise Killed
            real(*arguments)
            done += 1
            if done > die_at:
                raise Killed

        patch.setattr(DatasetWriter, method, step)

    wrap("put")
    wrap("remove")
    wrap("move")
    return lambda: done
