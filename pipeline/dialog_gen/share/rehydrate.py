"""Puts the images back into a dataset that was shared without them: fetched from their URLs, each checked by its hash.

Rows and their order stay as they are; a row whose image is gone, or is another one now, stays without it. What became
of each is counted in rehydrate.json, shard by shard, so that an interrupted command goes on with the next shard.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from dialog_gen.download.fetch import FetchPolicy
from dialog_gen.download.outcomes import MEANING as OUTCOME_MEANING
from dialog_gen.download.supervisor import require_img2dataset
from dialog_gen.schema import DIALOGUES
from dialog_gen.share.compact import COMPACTED, check_apart, copy_notes, regrouped
from dialog_gen.share.export import image_bytes
from dialog_gen.share.intact import check_bytes, footer, intact_sidecars
from dialog_gen.store import DatasetFolder, Sidecar, Store, open_store, sha256_json

_RECORD = "rehydrate.json"
_COLUMNS = ("image_sha256", "images", "url", "source_sha256")
# Row groups being fetched at a time: a slow server holds up its own, not all.
_GROUPS_AHEAD = 8

Outcomes = Counter[str]


@dataclass(frozen=True, slots=True)
class RehydrateSummary:
    """What became of the images, over all shards."""

    out: str
    outcomes: Outcomes

    @property
    def missing(self) -> int:
        """Rows that came without their image."""
        return self.outcomes.total() - self.outcomes["present"]

    @property
    def restored(self) -> int:
        """Rows that have it again."""
        return self.outcomes["restored"]

    def to_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        return {"out": self.out, "missing": self.missing, "restored": self.restored, "outcomes": dict(self._sorted())}

    def __str__(self) -> str:
        from dialog_gen.share.refetch import MEANING

        meaning = {**OUTCOME_MEANING, **MEANING}
        total = self.outcomes.total()
        lines = [f"{self.out}: {self.restored} of {self.missing} images are back"]
        lines += [
            f"  {outcome:<20}{count:>12}  {count / total:>6.1%}  {meaning.get(outcome, '')}"
            for outcome, count in self._sorted()
        ]
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
    from dialog_gen.share.refetch import Refetcher

    refetcher = Refetcher(policy)
    sidecars = intact_sidecars(source)
    pool = ThreadPoolExecutor(threads, "fetch")
    try:
        with open_store(out, _config(source)) as store:
            work = _Work(source, store, refetcher, pool, on_rows)
            for sidecar in sidecars:
                work.shard(sidecar)
            for name in set(store.shards()) - {sidecar.shard for sidecar in sidecars}:
                store.drop(name)
            copy_notes(source, store, anew=False)
            work.outcomes = {sidecar.shard: work.outcomes[sidecar.shard] for sidecar in sidecars}
            work.note()
    finally:
        pool.shutdown(cancel_futures=True)
    return RehydrateSummary(out, sum(work.outcomes.values(), Outcomes()))


def _config(source: DatasetFolder) -> dict[str, Any]:
    config: dict[str, Any] = {**source.config(), "rehydrated": True}
    if COMPACTED in config:
        config[COMPACTED] = {**config[COMPACTED], "images": True}
    return config


class _Work:
    def __init__(
        self,
        source: DatasetFolder,
        store: Store,
        refetcher: Any,
        pool: ThreadPoolExecutor,
        on_rows: Callable[[int], None],
    ) -> None:
        self._source, self._store, self._refetcher, self._pool = source, store, refetcher, pool
        self._on_rows = on_rows
        self.outcomes = _noted(store)

    def shard(self, sidecar: Sidecar) -> None:
        """Makes a shard, unless it is there."""
        fingerprint = sha256_json(sidecar.model_dump())
        if sidecar.shard in self.outcomes and self._store.completed(sidecar.shard, fingerprint):
            self._on_rows(sidecar.images)
            return
        outcomes = self.outcomes[sidecar.shard] = Outcomes()

        def note_first() -> Iterator[pa.Table]:
            # The sidecar comes last: a shard that counts as done has its outcomes noted.
            self.note()
            yield from ()

        made = sidecar.model_copy(update={"config_sha256": self._store.config_sha256, "input_fingerprint": fingerprint})
        data, rejects = (regrouped(self._tables(sidecar, part, outcomes)) for part in ("data", "rejects"))
        self._store.write_shard(made, data, chain(rejects, note_first()))

    def note(self) -> None:
        """Writes down what became of the images so far."""
        total = sum(self.outcomes.values(), Outcomes())
        shards = {name: dict(sorted(counts.items())) for name, counts in sorted(self.outcomes.items())}
        self._store.put_json(_RECORD, {"outcomes": dict(sorted(total.items())), "shards": shards})

    def _tables(self, sidecar: Sidecar, part: str, outcomes: Outcomes) -> Iterator[pa.Table]:
        ahead: deque[tuple[pa.Table, list[Future[tuple[bytes | None, str]] | None]]] = deque()
        for entry in (entry for entry in sidecar.files if entry.path.startswith(f"{part}/")):
            check_bytes(self._source, entry)
            footer(self._source, entry)
            for table in self._source.row_groups(entry):
                rows = table.select(_COLUMNS).to_pylist()
                ahead.append((table, [None if image_bytes(row) else self._submit(row) for row in rows]))
                if len(ahead) > _GROUPS_AHEAD:
                    yield self._with_images(*ahead.popleft(), outcomes)
        while ahead:
            yield self._with_images(*ahead.popleft(), outcomes)

    def _submit(self, row: dict[str, Any]) -> Future[tuple[bytes | None, str]]:
        return self._pool.submit(self._refetcher.restore, row)

    def _with_images(
        self, table: pa.Table, futures: Iterable[Future[tuple[bytes | None, str]] | None], outcomes: Outcomes
    ) -> pa.Table:
        images: list[Any] = []
        for there, future in zip(table["images"].to_pylist(), futures, strict=True):
            data, outcome = (None, "present") if future is None else future.result()
            outcomes[outcome] += 1
            images.append(there if data is None else [{"bytes": data, "path": None}])
        self._on_rows(table.num_rows)
        field = DIALOGUES.field("images")
        return table.set_column(table.schema.get_field_index("images"), field, pa.array(images, field.type))


def _noted(store: Store) -> dict[str, Outcomes]:
    try:
        noted = json.loads(store.read(_RECORD))["shards"]
        return {str(name): Outcomes({str(key): int(n) for key, n in counts.items()}) for name, counts in noted.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}
