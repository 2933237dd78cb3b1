"""Functions that tests apply on a Ray cluster."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from dialog_gen.core.mapping import Advance
from dialog_gen.dataset.errors import NoDatasetError


def square(item: int, advance: Advance) -> int:
    advance(item)
    time.sleep(0.2 if item == 0 else 0)  # the first is not the first to be complete
    return item * item


def no_dataset(item: int, advance: Advance) -> int:
    if item == 1:
        raise NoDatasetError("there", exists=True)
    return item


@dataclass(frozen=True)
class DiesOnce:
    """Ends its process at item 2, the first time that any process comes to it."""

    folder: Path

    def __call__(self, item: int, advance: Advance) -> int:
        if item == 2 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        return item


def dies(item: int, advance: Advance) -> int:
    os._exit(1)
