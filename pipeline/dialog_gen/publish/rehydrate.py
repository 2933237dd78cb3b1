"""Puts the images back into a dataset that was shared without them: fetched from their URLs, each checked by its hash.

Rows and their order stay as they are; a row whose image is gone, or is another one now, stays without it. What became
of each is counted in rehydrate.json, shard by shard, so that an interrupted command goes on with the next shard. Then
it asks again for what failed earlier and may have come back: a shard is done when no such row is left. Rows that are
not to be asked for again are listed in settled/SHARD.json.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, Sidecar, Store, open_store, sha256_json
from dialog_gen.dataset.intact import check_bytes, footer, intact_sidecars
from dialog_gen.dataset.record import DIALOGUES
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.img2dataset.supervisor import require_img2dataset
from dialog_gen.download.outcomes import MEANING as OUTCOME_MEANING
from dialog_gen.publish.compact import COMPACTED, check_apart, copy_notes, regrouped
from dialog_gen.publish.export import image_bytes

if TYPE_CHECKING:
    from dialog_gen.publish.refetch import Fetched, Refetcher

_RECORD = "rehydrate.json"
_COLUMNS = ("image_sha256", "images", "url", "source_sha256")
# Row groups being fetched at a time: a slow server holds up its own, not all.
_GROUPS_AHEAD = 8
_NO_ANSWER = ("dns", "connection", "timeout")

Outcomes = Counter[str]


@dataclass(frozen=True, slots=True)
class RehydrateSummary:
    """What became of the images, over all shards."""

    out: str
    outcomes: Outcomes

    @property
    def missing(self) -> int:
        """Rows that came without their image, but with its URL."""
        return self.outcomes.total() - self.outcomes["present"] - self.outcomes["no_url"]

    @property
    def restored(self) -> int:
        """Rows that have it again."""
        return self.outcomes["restored"]

    @property
    def failure(self) -> str | None:
        """What to say where not one image could be had that there was a URL of."""
        if self.restored or not self.missing:
            return None
        meaning = _meaning()
        found = [item for item in self._sorted() if item[0] not in ("present", "no_url")]
        classes = ", ".join(f"{count} {outcome} ({meaning[outcome]})" for outcome, count in found[:3])
        advice = " Is there a network?" if found[0][0] in _NO_ANSWER else ""
        return f"not one of {self.missing} images could be had again: {classes}.{advice}"

    def to_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        return {"out": self.out, "missing": self.missing, "restored": self.restored, "outcomes": dict(self._sorted())}

    def __str__(self) -> str:
        from dialog_gen.publish.refetch import SETTLED

        total, meaning = self.outcomes.total(), _meaning()
        without = f", {self.outcomes['no_url']} have no URL" if self.outcomes["no_url"] else ""
        back = f"{self.restored} of {self.missing} images are back" if self.missing else "there was nothing to fetch"
        lines = [f"{self.out}: {back}{without}"]
        lines += [
            f"  {outcome:<20}{count:>12}  {count / total:>6.1%}  {meaning.get(outcome, '')}"
            for outcome, count in self._sorted()
        ]
        if failed := sum(count for outcome, count in self.outcomes.items() if outcome not in SETTLED):
            lines.append(f"  {failed} may yet be had: the same command asks for them again")
        return "\n".join(lines)

    def _sorted(self) -> list[tuple[str, int]]:
        return sorted(self.outcomes.items(), key=lambda item: (item[0] != "restored", -item[1], item[0]))


def rehydrate(
    source: DatasetFolder,
    out: str,
    *,
    policy: FetchPolicy,
    threads: int = 64,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> RehydrateSummary:
    """Writes `source` to `out` with the images that can be had.

    Raises UsageError for a source with damaged shards, and where `out` holds something else or lies in the source;
    MissingExtraError without img2dataset, which made the stored images of the fetched ones.
    """
    check_apart(source.location, out)
    require_img2dataset()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else img2dataset's import asks for news over the network
    from dialog_gen.publish.refetch import Refetcher

    sidecars = intact_sidecars(source)
    with closing(Refetcher(policy, threads)) as refetcher, open_store(out, _config(source)) as store:
        work = _Work(source, store, refetcher, on_rows)
        # What failed earlier comes last: nobody waits for dead links before the first shard that is not there yet.
        for sidecar in sorted(sidecars, key=lambda sidecar: work.done(sidecar) is not None):
            work.shard(sidecar)
        for name in set(store.shards()) - {sidecar.shard for sidecar in sidecars}:
            store.drop(name)
            store.remove(_settled(name))
        copy_notes(source, store, anew=False)
        work.outcomes = {sidecar.shard: work.outcomes[sidecar.shard] for sidecar in sidecars}
        work.note()
    return RehydrateSummary(out, sum(work.outcomes.values(), Outcomes()))


def _config(source: DatasetFolder) -> dict[str, Any]:
    config: dict[str, Any] = {**source.config(), "rehydrated": True}
    if COMPACTED in config:
        config[COMPACTED] = {**config[COMPACTED], "images": True}
    return config


class _NothingNewError(Exception):
    """Not one more image is back: a finished shard stays as it is."""


@dataclass(slots=True)
class _Shard:
    """A shard on its way."""

    rows: DatasetFolder
    """Where they come from."""
    sidecar: Sidecar
    """Theirs."""
    outcomes: Outcomes
    settled_before: dict[int, str] = field(default_factory=dict[int, str])
    """Number of the row -> outcome, where nobody is to be asked again."""
    settled: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Outcome -> numbers of its rows, where nobody is to be asked the next time."""
    submitted: int = 0
    fetched: int = 0


class _Work:
    def __init__(
        self, source: DatasetFolder, store: Store, refetcher: "Refetcher", on_rows: Callable[[int], None]
    ) -> None:
        self._source, self._store, self._refetcher, self._on_rows = source, store, refetcher, on_rows
        self.outcomes = _noted(store)

    def done(self, sidecar: Sidecar) -> Sidecar | None:
        """The sidecar of what was made of a shard, if that is there and it is known what became of its images."""
        if sidecar.shard not in self.outcomes:
            return None
        return self._store.completed(sidecar.shard, sha256_json(sidecar.model_dump()))

    def shard(self, sidecar: Sidecar) -> None:
        """Makes a shard, unless it is there; what may have come back since is asked for again."""
        noted, done = self.outcomes.get(sidecar.shard, Outcomes()), self.done(sidecar)
        if done is None:
            made = sidecar.model_copy(
                update={
                    "config_sha256": self._store.config_sha256,
                    "input_fingerprint": sha256_json(sidecar.model_dump()),
                }
            )
            work = _Shard(self._source, sidecar, Outcomes())
        elif any(map(self._refetcher.may_change, noted)):
            # Its own rows have what is back, and what gates found meanwhile. Images that are back count as present.
            before = noted["restored"]
            made, work = done, _Shard(self._store, done, Outcomes(restored=before, present=-before))
            work.settled_before = self._settled_before(sidecar.shard)
        else:
            self._on_rows(sidecar.images)
            return

        def note_first() -> Iterator[pa.Table]:
            self.outcomes[made.shard] = +work.outcomes
            nothing_new = done is not None and work.outcomes["restored"] == noted["restored"]
            if not nothing_new:
                # The sidecar comes last, and an old one goes first: what is noted of a finished shard is true.
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
        """Writes down what became of the images so far."""
        total = sum(self.outcomes.values(), Outcomes())
        shards = {name: dict(sorted(counts.items())) for name, counts in sorted(self.outcomes.items())}
        self._store.put_json(_RECORD, {"outcomes": dict(sorted(total.items())), "shards": shards})

    def _tables(self, work: _Shard, part: str) -> Iterator[pa.Table]:
        ahead: deque[tuple[pa.Table, list[Fetched | Future[Fetched]]]] = deque()
        kept = self._kept(work.sidecar.shard, part) if work.rows is self._source else iter(())
        for entry in (entry for entry in work.sidecar.files if entry.path.startswith(f"{part}/")):
            check_bytes(work.rows, entry)
            footer(work.rows, entry)
            for table in work.rows.row_groups(entry):
                rows = table.select(_COLUMNS).to_pylist()
                ahead.append((table, [self._image(work, row, next(kept, None)) for row in rows]))
                if len(ahead) > _GROUPS_AHEAD:
                    yield self._with_images(work, *ahead.popleft())
        while ahead:
            yield self._with_images(work, *ahead.popleft())

    def _kept(self, shard: str, part: str) -> Iterator[bytes | None]:
        """The images of a shard that does not count as done, row by row.

        A process was killed while it put the shard in its place, or the source has changed since.
        """
        for path in (f"{part}/{shard}.parquet", f"{part}/{shard}.v2.parquet"):
            if self._store.exists(path):
                entry = FileEntry(path=path, rows=0, bytes=0, sha256="")
                with suppress(UsageError):
                    for table in self._store.row_groups(entry, ["images"]):
                        yield from map(image_bytes, table.to_pylist())
                return

    def _image(self, work: _Shard, row: dict[str, Any], kept: bytes | None) -> "Fetched | Future[Fetched]":
        number, work.submitted = work.submitted, work.submitted + 1
        if image_bytes(row) is not None:
            return None, "present"
        if kept is not None and sha256(kept).hexdigest() == row["image_sha256"]:
            return kept, "restored"
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
        self._on_rows(table.num_rows)
        field = DIALOGUES.field("images")
        return table.set_column(table.schema.get_field_index("images"), field, pa.array(images, field.type))

    def _settled_before(self, shard: str) -> dict[int, str]:
        try:
            settled = json.loads(self._store.read(_settled(shard)))
            return {int(number): str(outcome) for outcome, numbers in settled.items() for number in numbers}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}


def _settled(shard: str) -> str:
    return f"settled/{shard}.json"


def _meaning() -> dict[str, str]:
    from dialog_gen.publish.refetch import MEANING

    return {**OUTCOME_MEANING, **MEANING}


def _noted(store: Store) -> dict[str, Outcomes]:
    try:
        noted = json.loads(store.read(_RECORD))["shards"]
        return {str(name): Outcomes({str(key): int(n) for key, n in counts.items()}) for name, counts in noted.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
