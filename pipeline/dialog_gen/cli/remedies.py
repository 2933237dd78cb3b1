"""Advice for errors: the libraries' errors say what is wrong, and the command line adds which command helps."""

from collections.abc import Callable
from typing import Any

from dialog_gen.core.errors import DialogGenError
from dialog_gen.dataset.errors import (
    DamagedConfigError,
    DamagedDatasetError,
    EmptyDatasetError,
    NoDatasetError,
    OlderVersionError,
    OtherConfigError,
    RepeatedIdError,
    UnreadableRowsError,
)

REPAIRS = "sets aside what is damaged and makes it anew"
REPEATED_IDS = (
    "no repair mends ids that stand in more than one row: make the dataset anew in another folder, with unique ids "
    "(`dialog-gen run --prefix-ids` makes those of Parquet files unique)"
)
_DERIVED = {"compacted": "compact", "rehydrated": "rehydrate", "merged": "merge"}
"""Key in config.json -> the command that made the folder from other datasets."""


def _other_config(error: OtherConfigError) -> str:
    for key, command in _DERIVED.items():
        if key in error.found and key not in error.wanted:
            return (
                f"{error.location} was made by `dialog-gen {command}`: a run goes on in its own folder only. "
                "Choose another --out."
            )
    allowed = "A run may change --limit, --max-in-flight and what only costs time; anything else needs a new --out."
    return f"{error} {allowed}"


def _with_advice(advice: str) -> Callable[[DialogGenError], str]:
    return lambda error: f"{str(error).removesuffix('.')}: {advice}"


_REMEDIES: dict[type[DialogGenError], Callable[[Any], str]] = {
    NoDatasetError: _with_advice("give the folder that `dialog-gen run --out` wrote."),
    EmptyDatasetError: _with_advice("make some with `dialog-gen run` first."),
    UnreadableRowsError: _with_advice(f"`dialog-gen repair` {REPAIRS}."),
    DamagedDatasetError: _with_advice(f"`dialog-gen repair` {REPAIRS}."),
    RepeatedIdError: _with_advice(f"{REPEATED_IDS}."),
    DamagedConfigError: _with_advice("`dialog-gen repair` restores it."),
    OtherConfigError: _other_config,
    OlderVersionError: lambda error: f"{error} `dialog-gen upgrade {error.location}` brings it up to date.",
}


def explained(error: DialogGenError) -> str:
    """The error's message, with advice which command helps, if there is any."""
    return _REMEDIES.get(type(error), str)(error)
