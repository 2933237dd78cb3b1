"""Puts images back into a dataset that was published without them: fetches them by URL and checks their hashes.

Rows and their order do not change. If the image of a row is gone or has changed, the row stays without an image. The
outcomes are counted per shard in rehydrate.json, so that an interrupted command resumes with the next shard. After the
missing shards, it tries rows again that failed earlier and may succeed now. A shard is done when it has no such rows.
Rows that need no further try are listed in settled/SHARD.json.
"""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dialog_gen.core.errors import check_at_least
from dialog_gen.core.hashing import sha256_images, sha256_json
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.core.visible import visible
from dialog_gen.dataset.command import command_of
from dialog_gen.dataset.folder import DatasetFolder, ShardManifest, open_dataset, upgraded
from dialog_gen.dataset.intact import footer, intact_manifests
from dialog_gen.dataset.joined import check_apart
from dialog_gen.dataset.locks import refuse_while_written
from dialog_gen.dataset.record import DIALOGUES, stored_images
from dialog_gen.dataset.repair import SET_ASIDE
from dialog_gen.dataset.verify import totals
from dialog_gen.dataset.versions import RowFile
from dialog_gen.dataset.writer import DatasetWriter, open_writer
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.img2dataset.supervisor import require_img2dataset
from dialog_gen.download.outcomes import MEANING as OUTCOME_MEANING
from dialog_gen.publish.compact import COMPACTED, regrouped
from dialog_gen.publish.notes import copy_notes

if TYPE_CHECKING:
    from dialog_gen.publish.refetch import Fetched, Refetcher

_RECORD = "rehydrate.json"
_COLUMNS = ("image_sha256", "images", "url", "source_sha256")
# Number of row groups that are fetched at the same time, so that a slow server delays only its own row group.
_GROUPS_AHEAD = 8
_NO_ANSWER = ("dns", "connection", "timeout")

Outcomes = Counter[str]


@dataclass(frozen=True, slots=True)
class RehydrateSummary:
    """Counts of images by outcome, over all shards."""

    out: str
    outcomes: Outcomes

    @property
    def missing(self) -> int:
        """Number of rows of the source with a URL but without an image."""
        return self.outcomes.total() - self.outcomes["present"] - self.outcomes["no_url"]

    @property
    def restored(self) -> int:
        """Number of rows whose image was restored."""
        return self.outcomes["restored"]

    @property
    def failure(self) -> str | None:
        """The error message if images were missing and none of them could be restored; else None."""
        if self.restored or not self.missing:
            return None
        meaning = _meaning()
        found = [item for item in self._sorted() if item[0] not in ("present", "no_url")]
        classes = ", ".join(f"{count} {outcome} ({meaning[outcome]})" for outcome, count in found[:3])
        advice = " Is there a network?" if found[0][0] in _NO_ANSWER else ""
        return f"not one of {count_of(self.missing, 'image')} could be restored: {classes}.{advice}"

    def to_json(self) -> dict[str, Any]:
        """All counts as JSON values, for programs."""
        return {"out": self.out, "missing": self.missing, "restored": self.restored, "outcomes": dict(self._sorted())}

    def __str__(self) -> str:
        from dialog_gen.publish.refetch import SETTLED

        total, meaning = self.outcomes.total(), _meaning()
        without = f", {self.outcomes['no_url']} have no URL" if self.outcomes["no_url"] else ""
        back = (
            f"{self.restored} of {count_of(self.missing, 'image')} restored"
            if self.missing
            else "there was nothing to fetch"
        )
        lines = [f"{self.out}: {back}{without}"]
        lines += [
            f"  {outcome:<20}{count:>12}  {count / total:>6.1%}  {meaning.get(outcome, '')}"
            for outcome, count in self._sorted()
        ]
        if failed := sum(count for outcome, count in self.outcomes.items() if outcome not in SETTLED):
            lines.append(f"  {failed} may still be restored: the same command tries them again")
        return "\n".join(map(visible, lines))

    def _sorted(self) -> list[tuple[str, int]]:
        return sorted(self.outcomes.items(), key=lambda item: (item[0] != "restored", -item[1], item[0]))


def rehydrate(
    dataset: str | Path | DatasetFolder,
    out: str | Path,
    *,
    threads: int = 64,
    allow_loopback: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> RehydrateSummary:
    """Writes a dataset to `out`, a local folder or fsspec URL, with the images that can still be fetched.

    `threads` is the number of simultaneous requests; `allow_loopback` allows requests to servers on this machine. If no
    image could be restored, the `failure` of the summary is set.

    Raises UsageError for a source with damaged shards, and for an `out` that contains something else, is inside the
    source or contains the source; MissingExtraError if img2dataset, whose resizer made the stored images, is not
    installed.
    """
    check_at_least("--threads", threads, 1)
    policy = FetchPolicy(allow_loopback=allow_loopback)
    source = open_dataset(dataset)
    return rehydrate_with(policy, source, str(out), threads=threads, on_progress=on_progress)


def rehydrate_with(
    policy: FetchPolicy,
    source: DatasetFolder,
    out: str,
    *,
    threads: int = 64,
    on_progress: OnProgress = ignore_progress,
    only_missing: bool = False,
) -> RehydrateSummary:
    """Does the work of `rehydrate`, with any `FetchPolicy`. With `only_missing`, shards of `out` stay as they are."""
    refuse_while_written(source)
    check_apart(source.location, out)
    require_img2dataset()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # img2dataset's import would look for updates
    from dialog_gen.publish.refetch import Refetcher

    manifests = intact_manifests(source)
    arguments = {"dataset": source.location, "threads": threads, "allow_loopback": policy.allow_loopback}
    made_by = command_of("rehydrate", arguments, paths=["dataset"])
    with closing(Refetcher(policy, threads)) as refetcher, open_writer(out, _config(source), made_by=made_by) as store:
        work = _Rehydration(source, store, refetcher, on_progress)
        # Shards with earlier failures come last, so that dead links do not delay the shards that are still missing.
        for manifest in sorted(manifests, key=lambda manifest: work.done(manifest) is not None):
            if not only_missing or work.is_unknown(manifest.shard):
                work.make_shard(manifest)
        stale = set() if only_missing else set(store.shards()) - {manifest.shard for manifest in manifests}
        for name in stale:
            store.drop(name)
            store.remove(_settled(name))
        copy_notes(source, store, overwrite=False)
        there = set(store.shards())
        work.outcomes = {name: outcomes for name, outcomes in work.outcomes.items() if name in there}
        work.note()
    return RehydrateSummary(out, sum(work.outcomes.values(), Outcomes()))


def _config(source: DatasetFolder) -> dict[str, Any]:
    config: dict[str, Any] = {**upgraded(source.config()), "rehydrated": True}
    if COMPACTED in config:
        config[COMPACTED] = {**config[COMPACTED], "images": True}
    return config


class _NothingNewError(Exception):
    """No further image was restored, so the finished shard stays unchanged."""


@dataclass(slots=True)
class _Shard:
    """A shard in progress."""

    rows: DatasetFolder
    """The folder from which its rows are read: the source, or `out` for a second try."""
    manifest: ShardManifest
    """The manifest of the shard in that folder."""
    outcomes: Outcomes
    settled_before: dict[int, str] = field(default_factory=dict[int, str])
    """Row number -> outcome, for rows that earlier commands settled."""
    settled: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Outcome -> row numbers, for rows that the next command does not need to try."""
    submitted: int = 0
    fetched: int = 0


class _Rehydration:
    def __init__(
        self, source: DatasetFolder, store: DatasetWriter, refetcher: "Refetcher", on_progress: OnProgress
    ) -> None:
        self._source, self._store, self._refetcher, self._on_progress = source, store, refetcher, on_progress
        self._rows_done, self._rows = 0, totals(source).images
        self.outcomes = _noted(store)

    def done(self, manifest: ShardManifest) -> ShardManifest | None:
        """The manifest of the shard in `out`; None unless it is complete there and its outcomes are recorded."""
        if manifest.shard not in self.outcomes:
            return None
        return self._store.completed(manifest.shard, sha256_json(manifest.model_dump()))

    def is_unknown(self, shard: str) -> bool:
        """Whether `out` lacks a shard or the record of its outcomes."""
        return shard not in self.outcomes or self._store.manifest(shard) is None

    def make_shard(self, manifest: ShardManifest) -> None:
        """Makes a shard unless it is complete. In a complete shard, rows that may succeed now are tried again."""
        noted, done = self.outcomes.get(manifest.shard, Outcomes()), self.done(manifest)
        if done is None:
            made = manifest.model_copy(
                update={
                    "config_sha256": self._store.config_sha256,
                    "input_fingerprint": sha256_json(manifest.model_dump()),
                }
            )
            work = _Shard(self._source, manifest, Outcomes())
        elif any(map(self._refetcher.may_change, noted)):
            # Rows are read from `out`, since they have restored images and newer gate scores. Restored images count as
            # "present" there, which these counts correct.
            before = noted["restored"]
            made, work = done, _Shard(self._store, done, Outcomes(restored=before, present=-before))
            work.settled_before = self._settled_before(manifest.shard)
        else:
            self._advance(manifest.images)
            return

        def note_first() -> Iterator[pa.Table]:
            self.outcomes[made.shard] = +work.outcomes
            nothing_new = done is not None and work.outcomes["restored"] == noted["restored"]
            if not nothing_new:
                # The old manifest is removed first and the new one is written last, so the records of a finished shard
                # are always correct.
                self._store.remove(f"shards/{made.shard}.json")
            self._store.put_json(_settled(made.shard), work.settled)
            self.note()
            if nothing_new:
                raise _NothingNewError
            yield from ()

        data, rejects = (regrouped(self._tables(work, part)) for part in ("data", "rejects"))
        with suppress(_NothingNewError):
            self._store.write_shard(made, data, chain(rejects, note_first()))

    def note(self) -> None:
        """Writes the outcomes so far to rehydrate.json."""
        total = sum(self.outcomes.values(), Outcomes())
        shards = {name: dict(sorted(counts.items())) for name, counts in sorted(self.outcomes.items())}
        self._store.put_json(_RECORD, {"outcomes": dict(sorted(total.items())), "shards": shards})

    def _advance(self, rows: int) -> None:
        self._rows_done += rows
        self._on_progress("fetching images", self._rows_done, self._rows, "images")

    def _tables(self, work: _Shard, part: str) -> Iterator[pa.Table]:
        ahead: deque[tuple[pa.Table, list[Fetched | Future[Fetched]]]] = deque()
        kept = self._kept(work.manifest.shard, part) if work.rows is self._source else iter(())
        for entry in (entry for entry in work.manifest.files if entry.path.startswith(f"{part}/")):
            footer(work.rows, entry)
            for table in work.rows.row_groups(entry):
                rows = table.select(_COLUMNS).to_pylist()
                ahead.append((table, [self._image(work, row, next(kept, ())) for row in rows]))
                if len(ahead) > _GROUPS_AHEAD:
                    yield self._with_images(work, *ahead.popleft())
        while ahead:
            yield self._with_images(work, *ahead.popleft())

    def _kept(self, shard: str, part: str) -> Iterator[list[bytes]]:
        """Yields the images, row by row, that `out` already has of a shard that is not done.

        There are some if a process was killed while it committed the shard, if the source has changed, or if a repair
        set the shard aside.
        """
        places = ["", *(f"{SET_ASIDE}/{name}/" for name in reversed(self._store.list(SET_ASIDE)))]
        names = (f"{part}/{shard}.parquet", f"{part}/{shard}.v2.parquet")
        for path in (f"{place}{name}" for place in places for name in names):
            if self._store.exists(path):
                # No manifest names the file: each image is compared with its own hash.
                with suppress(pa.ArrowException, OSError), self._store.open(path) as file:
                    for table in RowFile(file).row_groups(["images"]):
                        yield from map(stored_images, table.to_pylist())
                return

    def _image(self, work: _Shard, row: dict[str, Any], kept: Sequence[bytes]) -> "Fetched | Future[Fetched]":
        number, work.submitted = work.submitted, work.submitted + 1
        if stored_images(row):
            return None, "present"
        # Images are fetched by URL, which rows with several images do not have.
        if len(kept) == 1 and sha256_images(kept) == row["image_sha256"]:
            return kept[0], "restored"
        if (outcome := work.settled_before.get(number)) and not self._refetcher.may_change(outcome):
            return None, outcome
        return self._refetcher.submit(row)

    def _with_images(self, work: _Shard, table: pa.Table, fetched: "Sequence[Fetched | Future[Fetched]]") -> pa.Table:
        images: list[Any] = []
        for there, future in zip(table["images"].to_pylist(), fetched, strict=True):
            data, outcome = future.result() if isinstance(future, Future) else future
            work.outcomes[outcome] += 1
            if outcome not in ("present", "restored") and not self._refetcher.may_change(outcome):
                work.settled.setdefault(outcome, []).append(work.fetched)
            work.fetched += 1
            images.append(there if data is None else [{"bytes": data, "path": None}])
        self._advance(table.num_rows)
        field = DIALOGUES.field("images")
        return table.set_column(table.schema.get_field_index("images"), field, pa.array(images, field.type))

    def _settled_before(self, shard: str) -> dict[int, str]:
        try:
            settled = unsealed(self._store.read(_settled(shard)))
            return {int(number): str(outcome) for outcome, numbers in settled.items() for number in numbers}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}


def _settled(shard: str) -> str:
    return f"settled/{shard}.json"


def _meaning() -> dict[str, str]:
    from dialog_gen.publish.refetch import MEANING

    return {**OUTCOME_MEANING, **MEANING}


def _noted(store: DatasetWriter) -> dict[str, Outcomes]:
    try:
        noted = unsealed(store.read(_RECORD))["shards"]
        return {str(name): Outcomes({str(key): int(n) for key, n in counts.items()}) for name, counts in noted.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
