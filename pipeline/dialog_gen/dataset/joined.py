"""Several datasets of one configuration, taken as one: for `merge`, and for `compact` of several folders."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import name_key
from dialog_gen.dataset.errors import EmptyDatasetError, differing_keys
from dialog_gen.dataset.folder import DatasetFolder, ShardManifest, open_dataset, upgraded
from dialog_gen.dataset.intact import intact_reader
from dialog_gen.dataset.locks import refuse_while_written

MERGED = "merged"
"""The key in config.json that only datasets have that were made of several."""
OF_INPUT = ("images", "shard_size", "prefix_ids")
"""The keys in config.json that say where the images come from, and how they are divided. Datasets that differ in
nothing else have rows of one kind."""

Datasets = str | Path | DatasetFolder | Sequence[str | Path | DatasetFolder]
"""One dataset, or several."""


def open_inputs(datasets: Datasets, out: str) -> list[DatasetFolder]:
    """Opens the datasets that `out` is to be made of.

    Raises NoDatasetError and UsageError if one of them cannot be read, is given twice or is inside `out` or around it,
    and BeingWrittenError if a process writes to one.
    """
    names = [datasets] if isinstance(datasets, str | Path | DatasetFolder) else datasets
    folders = [open_dataset(name) for name in names]
    if not folders:
        raise UsageError("no dataset is given: name at least one.")
    places = dict[str, str]()
    for folder in folders:
        if (before := places.setdefault(_place(folder), folder.location)) is not folder.location:
            same = "" if before == folder.location else f", as {before} too"
            raise UsageError(f"{folder.location} is given twice{same}: name each dataset once.")
        refuse_while_written(folder)
        check_apart(folder.location, out)
    return folders


def joined_config(folders: Sequence[DatasetFolder], *, free: Iterable[str] = ()) -> dict[str, Any]:
    """The configuration of a dataset made of these; that of a single one is its own, in the current version.

    That of several lacks the keys `OF_INPUT`, so that it stays the same if further datasets join, and has the key
    `MERGED`. Raises UsageError if other keys differ, but for those in `free`, which it lacks too.
    """
    first, *others = ({**upgraded(folder.config())} for folder in folders)
    if not others:
        return first
    left_out = {*OF_INPUT, *free, MERGED}
    for folder, other in zip(folders[1:], others, strict=True):
        if keys := [key for key in differing_keys(first, other) if key not in left_out]:
            values = "; ".join(f"{key}: {first.get(key)!r} and {other.get(key)!r}" for key in keys)
            raise UsageError(
                f"{folders[0].location} and {folder.location} were made with different configurations ({values}): "
                f"datasets that are joined may differ only in {', '.join(OF_INPUT)}."
            )
    return {**{key: value for key, value in first.items() if key not in left_out}, MERGED: True}


class JoinedShard(NamedTuple):
    """A finished shard of one of the datasets."""

    folder: DatasetFolder
    manifest: ShardManifest
    name: str
    """Its name among the shards of all the datasets."""


def joined_shards(folders: Iterable[DatasetFolder]) -> Iterator[JoinedShard]:
    """The shards of each dataset, in order, after a check that their files exist and have the right size.

    The first of several shards of one name keeps it; the others get the number of their dataset appended: the same
    datasets in the same order give the same names. Raises DamagedDatasetError for a damaged shard, and
    EmptyDatasetError for a dataset without any.
    """
    taken = set[str]()
    for number, folder in enumerate(folders, 1):
        read, is_empty = intact_reader(folder), True
        names, unique = tee(_unique_names(folder.shards(), number, taken))
        manifests = folder.each(read, (name for name, _ in names))
        for manifest, (_, name) in zip(manifests, unique, strict=True):
            if manifest is not None:
                is_empty = False
                yield JoinedShard(folder, manifest, name)
        if is_empty:
            raise EmptyDatasetError(folder.location)


def _unique_names(names: Iterable[str], number: int, taken: set[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        unique = name
        while (key := _files_key(unique)) in taken:
            unique = f"{unique}-{number}"
        taken.add(key)
        yield name, unique


def check_apart(source: str, out: str) -> None:
    """Raises UsageError if two dataset folders are the same or one is inside the other."""
    here, there = (_place(DatasetFolder(name)) for name in (source, out))
    if f"{there}/".startswith(f"{here}/") or here.startswith(f"{there}/"):
        raise UsageError(f"--out {out} and {source} lie in one another: choose another --out.")


def _files_key(shard: str) -> str:
    """Equal for shards whose files could have one name: rewritten rows of `a` are in a file that `a.v2` would have."""
    return name_key(shard.removesuffix(".v2"))


def _place(folder: DatasetFolder) -> str:
    return (str(folder.local_root.resolve()) if folder.local_root else folder.location).rstrip("/")
