"""Errors of a dataset folder. They state what is wrong; `dialog_gen.cli.remedies` adds what to do about it."""

from collections.abc import Mapping
from typing import Any

from dialog_gen.core.errors import UsageError


class NoDatasetError(UsageError):
    """There is no dataset at a location."""

    def __init__(self, location: str, *, exists: bool) -> None:
        what = "is no dataset folder (it has no config.json)" if exists else "does not exist"
        super().__init__(f"{location} {what}.")


class DamagedConfigError(UsageError):
    """The configuration of a dataset is missing or damaged."""


class EmptyDatasetError(UsageError):
    """A dataset has no finished shard."""

    def __init__(self, location: str) -> None:
        super().__init__(f"{location} has no finished shard yet.")


class DamagedDatasetError(UsageError):
    """A shard does not match its manifest."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}.")


class UnreadableRowsError(DamagedDatasetError):
    """A Parquet file of the dataset is missing or damaged."""

    def __init__(self, location: str, path: str, error: object) -> None:
        super().__init__(f"{location}/{path} cannot be read ({error})")


class RepeatedIdError(DamagedDatasetError):
    """An id stands in more than one row; each shard by itself is as promised."""


class BeingWrittenError(UsageError):
    """A process is writing to a dataset, which therefore cannot be copied, or of which a shard cannot be read."""

    def __init__(self, location: str, what: str = "") -> None:
        super().__init__(f"a run is writing to {location}{what}: wait for it.")


class OtherConfigError(UsageError):
    """A dataset was made with a configuration other than the one it is opened for writing with."""

    def __init__(self, location: str, *, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        self.location, self.found, self.wanted = location, found, wanted
        keys = differing_keys(found, wanted)
        differing = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in keys)
        super().__init__(f"{location} was made with another configuration ({differing}).")


class OlderVersionError(UsageError):
    """A dataset has an older version of the record and therefore cannot be written to."""

    def __init__(self, location: str, version: int) -> None:
        self.location = location
        super().__init__(f"{location} has version {version} of the record, which can be read but no longer written.")


def differing_keys(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ between two configurations."""
    return [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
