"""Joins datasets of one configuration into one, shard by shard, without changing a byte of their rows.

The result is a normal dataset folder with the shards of all of them. The same command resumes after an interruption,
adds datasets that are named after the earlier ones, and copies shards that changed.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.parallel import in_order
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.command import Command, command_of, recorded_command
from dialog_gen.dataset.copying import copy_shard
from dialog_gen.dataset.errors import DamagedDatasetError, OlderVersionError
from dialog_gen.dataset.folder import DatasetFolder, ShardManifest
from dialog_gen.dataset.intact import check_unique_ids, footer
from dialog_gen.dataset.joined import MERGED, JoinedShard, joined_config, joined_shards, open_inputs
from dialog_gen.dataset.notes import missing_note, missing_shards
from dialog_gen.dataset.writer import DatasetWriter, check_config, open_writer
from dialog_gen.publish.notes import Tally, join_notes

_log = logging.getLogger(__name__)
_COPIES = 8
"""Number of shards that are copied at a time, from or to an object store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSummary:
    """The joined dataset."""

    out: str
    datasets: int
    images: int
    shards: int
    shards_already_done: int
    shards_renamed: int
    """Shards whose name an earlier dataset has, too."""
    bytes: int

    def __str__(self) -> str:
        skipped = f", {self.shards_already_done} of them were there already" if self.shards_already_done else ""
        renamed = (
            f"; {count_of(self.shards_renamed, 'shard')} {'has' if self.shards_renamed == 1 else 'have'} "
            f"another name than before"
            if self.shards_renamed
            else ""
        )
        return (
            f"{self.out}: {count_of(self.images, 'image')} in {count_of(self.shards, 'shard')} of "
            f"{self.bytes / 1e6:.0f} MB in all, "
            f"from {self.datasets} datasets{skipped}{renamed}"
        )


def merge(
    datasets: Sequence[str | Path | DatasetFolder], out: str | Path, *, on_progress: OnProgress = ignore_progress
) -> MergeSummary:
    """Copies the shards of several datasets of one configuration to `out`, a local folder or fsspec URL.

    The datasets may differ only in their images and in how these were divided into shards. All ids are checked before
    anything is written, in bounded memory; every byte is checked while it is copied. A shard whose name an earlier
    dataset has gets the number of its dataset appended, which is logged. Scores of gates are kept.

    Raises UsageError for datasets of different configurations, with an id in common, given twice, or that a process
    writes to; for an `out` that contains something else or is inside a dataset or around it. Raises DamagedDatasetError
    for a damaged dataset, EmptyDatasetError for one without shards, OlderVersionError for one with an older version of
    the record, and DialogGenError if `out` cannot be written; shards that are finished by then stay.
    """
    return merge_datasets(open_inputs(datasets, str(out)), str(out), on_progress=on_progress)


def merge_datasets(
    folders: Sequence[DatasetFolder], out: str, *, on_progress: OnProgress = ignore_progress, only_missing: bool = False
) -> MergeSummary:
    """Does the work of `merge`. With `only_missing`, raises UsageError if a shard of `out` would be replaced."""
    for folder in folders:
        if not folder.is_current():
            raise OlderVersionError(folder.location, min(folder.versions().values()))
    config = {**joined_config(folders), MERGED: True}
    made_by = command_of("merge", {"datasets": [folder.location for folder in folders]}, paths=["datasets"])
    check_config(out, config)
    _check_command(out, made_by)
    total = _check_inputs(folders, on_progress)
    there = Tally()
    skipped = size = renamed = 0
    threads = min(_COPIES, max(folder.requests for folder in (*folders, DatasetFolder(out))))
    with open_writer(out, config, made_by=made_by) as store:
        _check_shards(store, folders, only_missing=only_missing)
        planned = map(partial(_planned, store), joined_shards(folders))
        for number, (plan, done) in enumerate(in_order(partial(_carried_out, store), planned, threads=threads)):
            on_progress("copying shards", number, total, "shards")
            before = plan.shard.manifest.shard
            if done.shard != before:
                if not renamed:
                    where = plan.shard.folder.location
                    _log.warning("shards of one name: %s of %s becomes %s, and so on", before, where, done.shard)
                renamed += 1
            skipped += plan.there is not None
            there.add(done)
            size += sum(entry.bytes for entry in done.files)
        on_progress("copying shards", total, total, "shards")
        join_notes(folders, store, there, overwrite=skipped < there.counts.shards)
    return MergeSummary(
        out=out,
        datasets=len(folders),
        images=there.counts.images,
        shards=there.counts.shards,
        shards_already_done=skipped,
        shards_renamed=renamed,
        bytes=size,
    )


class _Plan(NamedTuple):
    shard: JoinedShard
    wanted: ShardManifest
    there: ShardManifest | None
    """The manifest of the shard if it was copied before."""


def _planned(store: DatasetWriter, shard: JoinedShard) -> _Plan:
    wanted = _wanted(shard, store)
    return _Plan(shard, wanted, store.completed(wanted.shard, wanted.input_fingerprint))


def _carried_out(store: DatasetWriter, plan: _Plan) -> tuple[_Plan, ShardManifest]:
    return plan, plan.there or copy_shard(store, plan.wanted, plan.shard.folder)


def _wanted(shard: JoinedShard, store: DatasetWriter) -> ShardManifest:
    fingerprint = sha256_json(shard.manifest.model_dump())
    return shard.manifest.model_copy(
        update={"shard": shard.name, "config_sha256": store.config_sha256, "input_fingerprint": fingerprint}
    )


def _check_command(out: str, made_by: Command) -> None:
    """A merge of other datasets, or of the same in another order, would replace shards by others."""
    folder = DatasetFolder(out)
    if not folder.shards():
        return
    before = recorded_command(folder)
    named = before.arguments["datasets"] if before is not None and before.command == made_by.command else None
    if named is None:
        raise UsageError(f"{out} does not say which datasets it was made of: choose another --out.")
    if made_by.arguments["datasets"][: len(named)] != named:
        raise UsageError(
            f"{out} was made of {', '.join(named)}: name these first, in this order, or choose another --out."
        )


def _check_inputs(folders: Sequence[DatasetFolder], on_progress: OnProgress) -> int:
    """Raises an error for damaged datasets and repeated ids; returns the number of shards."""
    done, images = 0, dict[str, int]()

    def checked() -> Iterator[tuple[DatasetFolder, ShardManifest]]:
        nonlocal done
        threads = max(folder.requests for folder in folders)
        for shard in in_order(_with_known_columns, joined_shards(folders), threads=threads):
            on_progress("checking ids", done, None, "shards")
            images[shard.folder.location] = images.get(shard.folder.location, 0) + shard.manifest.images
            yield shard.folder, shard.manifest
            done += 1

    check_unique_ids(folders, checked())
    for folder in folders:
        if problem := missing_shards(folder, images[folder.location]) or missing_note(folder):
            raise DamagedDatasetError(f"{folder.location}: {problem}")
    return done


def _with_known_columns(shard: JoinedShard) -> JoinedShard:
    for entry in shard.manifest.files:
        footer(shard.folder, entry)
    return shard


def _check_shards(store: DatasetWriter, folders: Sequence[DatasetFolder], *, only_missing: bool) -> None:
    """Raises UsageError before anything is changed if a shard would have to be removed, which `merge` never does."""
    strangers = set(store.shards())
    for shard in joined_shards(folders) if strangers else ():
        if shard.name in strangers:
            strangers.remove(shard.name)
            wanted = _wanted(shard, store)
            if only_missing and store.completed(wanted.shard, wanted.input_fingerprint) is None:
                raise UsageError(
                    f"{shard.folder.location} has changed since {store.location} was made of it: the same `dialog-gen "
                    "merge` again copies what has changed."
                )
    if strangers:
        raise UsageError(
            f"{store.location} has {count_of(len(strangers), 'shard')} that none of the datasets has, first "
            f"{min(strangers)}: "
            "choose another --out."
        )
