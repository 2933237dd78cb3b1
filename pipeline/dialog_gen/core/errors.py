"""The errors that a user can cause, and the exit code of each.

DialogGenError            the base; its message says what was wrong, the value received and what to do next
  UsageError              exit 2: wrong flags, missing input, an output folder of another configuration
    MissingExtraError     exit 2: an optional dependency is not installed
  FailedCheckError        exit 1: the command ran, but a check failed or more images were lost than is allowed
"""

import difflib
from collections.abc import Iterable


class DialogGenError(Exception):
    """An error that is shown to the user without a traceback."""

    exit_code = 2


class UsageError(DialogGenError):
    """Wrong use: the command did nothing, and existing results are unchanged."""


class MissingExtraError(UsageError):
    """An optional dependency is missing; the message names the extra that installs it."""

    def __init__(self, what: str, extra: str, note: str = "") -> None:
        note = f" ({note})" if note else ""
        super().__init__(f"{what} needs an extra that is not installed: pip install 'dialog-gen[{extra}]'{note}.")


class FailedCheckError(DialogGenError):
    """The command finished, but a check failed."""

    exit_code = 1


def check_at_least(flag: str, value: float, least: float) -> None:
    """Raises UsageError if `value` is less than `least`; the message calls it `flag`, such as "--threads"."""
    if not value >= least:  # nor is NaN
        raise UsageError(f"{flag} {value:g} is too small: give at least {least:g}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the most similar known word, if there is one, and all known words."""
    names = sorted(known)
    nearest = difflib.get_close_matches(word, names, n=1)
    guess = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{guess}Known: {', '.join(names)}"
