"""Processes that end without a last word."""

import itertools
import os
from collections.abc import Callable
from typing import Any

CRASHED = 9


def crash_at(number: int, out: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that ends the process at the `number`-th file that it touches under `out`."""
    seen = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
        if touches and str(arguments[0]).startswith(out) and next(seen) == number:
            os._exit(CRASHED)

    return hook
