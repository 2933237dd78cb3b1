"""The errors that a user can cause, and the exit code of each.

DialogGenError            the base; its message says what was wrong, the value received and what to do next
  UsageError              exit 2: wrong flags, missing input, an output folder of another configuration
    MissingExtraError     exit 2: an optional dependency is not installed
  FailedCheckError        exit 1: the command ran, but a check failed or more images were lost than is allowed
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from dialog_gen.core.extras import install_command

_LONG = 10**20
"""Shorter integers are written out."""


class DialogGenError(Exception):
    """An error that is shown to the user without a traceback."""

    exit_code = 2
    ends_process = False
    """Whether threads of this process may hang: a command line then ends the process without waiting for them."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An error may come from another process; the arguments of its class's __init__ are often other than `args`.
        return _same, (type(self), self.args), self.__dict__


def _same(kind: type[DialogGenError], args: tuple[Any, ...]) -> DialogGenError:
    return kind.__new__(kind, *args)


class UsageError(DialogGenError):
    """Wrong use: the command did nothing, and existing results are unchanged."""


class MissingExtraError(UsageError):
    """An optional dependency is missing; the message names the extra that installs it."""

    def __init__(self, what: str, extra: str, note: str = "") -> None:
        note = f" ({note})" if note else ""
        super().__init__(f"{what} needs an extra that is not installed: {install_command(extra)}{note}.")


class FailedCheckError(DialogGenError):
    """The command finished, but a check failed."""

    exit_code = 1


def check_at_least(flag: str, value: float, least: float) -> None:
    """Raises UsageError if `value` is less than `least`; the message calls it `flag`, such as "--threads"."""
    if not value >= least:  # nor is NaN
        raise UsageError(f"{flag} {_number(value)} is too small: give at least {_number(least)}.")


def check_within(flag: str, value: float, least: float, most: float) -> None:
    """Raises UsageError if `value` is less than `least` or more than `most`; `flag` as in `check_at_least`."""
    check_at_least(flag, value, least)
    if value > most:
        raise UsageError(f"{flag} {_number(value)} is too large: give at most {_number(most)}.")


def _number(value: float) -> str:
    """The number in a few characters; an integer of few digits is exact."""
    if not isinstance(value, int):
        return f"{value:g}"
    if abs(value) < _LONG:
        return str(value)
    return f"{'-' if value < 0 else ''}1e{math.floor(value.bit_length() * math.log10(2))}"  # too large for a float


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the most similar known word, if there is one, and all known words."""
    names = sorted(known)
    # A beginning, such as "llava" of "llava-1.5-7b", is less similar than difflib wants.
    begun = [name for name in names if word and name.lower().startswith(word.lower())]
    begun.sort(key=len)
    nearest = difflib.get_close_matches(word, names, n=1) or begun
    guess = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{guess}Known: {', '.join(names) or 'none'}"
