"""What can go wrong for a user, and the exit code it ends with.

DialogGenError            the base; its message says what was wrong, the value received and what to do next
  UsageError              exit 2: wrong flags, missing input, an output folder of another configuration
    MissingExtraError     exit 2: an optional dependency is not installed
  FailedCheckError        exit 1: the command ran, but a check failed or losses are over the allowed fraction
"""

import difflib
from collections.abc import Iterable


class DialogGenError(Exception):
    """An error to show without a traceback."""

    exit_code = 2


class UsageError(DialogGenError):
    """Wrong use: nothing was done, nothing already made was touched."""


class MissingExtraError(UsageError):
    """An optional dependency is missing; names the extra that brings it."""

    def __init__(self, what: str, extra: str, note: str = "") -> None:
        note = f" ({note})" if note else ""
        super().__init__(f"{what} needs an extra that is not installed: pip install 'dialog-gen[{extra}]'{note}.")


class FailedCheckError(DialogGenError):
    """The command ran to its end and found something wrong."""

    exit_code = 1


def check_at_least(flag: str, value: float, least: float) -> None:
    """Raises UsageError for a value below `least`; `flag` names it in the message, such as "--threads"."""
    if value < least:
        raise UsageError(f"{flag} {value:g} is too small: give at least {least:g}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word and all known words."""
    names = sorted(known)
    nearest = difflib.get_close_matches(word, names, n=1)
    guess = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{guess}Known: {', '.join(names)}"
