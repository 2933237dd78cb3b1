"""The command lines, run in this process."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Ended(NamedTuple):
    """What a command came to."""

    code: object
    out: str
    err: str

    @property
    def error(self) -> str:
        """What a failure says: one line, and nothing else anywhere."""
        assert self.code in (1, 2)
        assert self.out == ""
        # What a run said before its engine started.
        said = [line for line in self.err.splitlines(keepends=True) if not line.startswith("INFO     starting ")]
        assert len(said) == 1
        assert said[0].startswith("error: ")
        return said[0]

    @property
    def mistake(self) -> str:
        """The error of wrong use."""
        assert self.code == 2
        return self.error


Cli = Callable[..., Ended]


def cli_of(
    program: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Cli:
    """A function that takes the program's arguments."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ending:
            code = ending.code or 0
        return Ended(code, *capfd.readouterr())

    return call
