"""Which command helps against which error: what libraries raise tells the fact, and a command line adds the advice."""

from collections.abc import Callable
from typing import Any

from dialog_gen.core.errors import DialogGenError
from dialog_gen.dataset.errors import (
    DamagedDatasetError,
    EmptyDatasetError,
    NoDatasetError,
    OlderVersionError,
    OtherConfigError,
    UnreadableRowsError,
)

_DERIVED = {"compacted": "compact", "rehydrated": "rehydrate"}
"""Key of config.json -> the command that made the folder from another one."""


def _other_config(error: OtherConfigError) -> str:
    for key, command in _DERIVED.items():
        if key in error.found and key not in error.wanted:
            return (
                f"{error.location} was made by `dialog-gen {command}`: a run goes on in its own folder only. "
                "Choose another --out."
            )
    free = "A run may change --limit, --max-in-flight and what only costs time; anything else needs a new --out."
    return f"{error} {free}"


def _adding(advice: str) -> Callable[[DialogGenError], str]:
    return lambda error: f"{str(error).removesuffix('.')}: {advice}"


_REMEDIES: dict[type[DialogGenError], Callable[[Any], str]] = {
    NoDatasetError: _adding("give the folder that `dialog-gen run --out` wrote."),
    EmptyDatasetError: _adding("let `dialog-gen run` make some first."),
    UnreadableRowsError: _adding("`dialog-gen verify` tells more."),
    DamagedDatasetError: _adding("`dialog-gen verify` tells more, the run's own command makes damaged shards anew."),
    OtherConfigError: _other_config,
    OlderVersionError: lambda error: f"{error} `dialog-gen upgrade {error.location}` brings it up to date.",
}


def explained(error: DialogGenError) -> str:
    """The error's message, with the command that helps where there is one."""
    return _REMEDIES.get(type(error), str)(error)
