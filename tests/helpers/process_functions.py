"""Functions that processes of a `ProcessMap` can import."""

import os
import signal
from pathlib import Path

from dialog_gen.core.errors import UsageError
from dialog_gen.core.mapping import Advance


def square(number: int, advance: Advance) -> int:
    advance(number)
    return number * number


def name_of(number: int, advance: Advance) -> str:
    return os.environ["NAME"]


def refuses(number: int, advance: Advance) -> int:
    if number == 3:
        raise UsageError("three is wrong.")
    return number


class DiesOnce:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, number: int, advance: Advance) -> int:
        marker = self._folder / str(number)
        if number % 4 == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def dies(number: int, advance: Advance) -> int:
    print("last words", flush=True)
    os._exit(7)
