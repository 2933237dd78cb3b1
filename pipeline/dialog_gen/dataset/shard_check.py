"""Checks one shard against its manifest: checksums, schema, counts, and each of its rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from dialog_gen.core.blocks import digests
from dialog_gen.core.hashing import sha256_images
from dialog_gen.core.parquet import open_parquet
from dialog_gen.core.plural import count_of
from dialog_gen.dataset.folder import DatasetFolder, FileEntry, ShardManifest
from dialog_gen.dataset.record import STATEMENTS, stored_images
from dialog_gen.dataset.versions import pair_columns, schema_of

_ROWS_AT_ONCE = 100
CheckImages = Callable[[Sequence[dict[str, Any]]], Iterable[str | None]]
"""Takes rows; returns for each row what is wrong with its image, or None."""


@dataclass(slots=True)
class ShardFindings:
    """What was found in a shard."""

    problems: list[str] = field(default_factory=list[str])
    pairs: int = 0
    image_ids: list[str] = field(default_factory=list[str])


def check_shard(
    folder: DatasetFolder,
    manifest: ShardManifest,
    version: int,
    check_images: CheckImages | None = None,
    *,
    statements: bool = False,
) -> ShardFindings:
    """Reads every byte of a shard, whose files have the given version of the record.

    `statements` says that the dataset's protocol asks for statements, so that accepted rows have a column of them.
    """
    findings = ShardFindings()
    where = f"shard {manifest.shard}"
    if manifest.accepted + manifest.rejected + manifest.unreadable != manifest.images:
        findings.problems.append(
            f"{where}: {manifest.accepted} accepted + {manifest.rejected} rejected + {manifest.unreadable} unreadable "
            f"are not {count_of(manifest.images, 'image')}"
        )
    counted, protocols = Counter[tuple[str, str]](), Counter[str]()
    for entry in manifest.files:
        promised = (STATEMENTS,) if statements and entry.path.startswith("data/") else ()
        if problem := _check_file(folder, entry, version, findings, counted, protocols, check_images, promised):
            findings.problems.append(f"{where}: {problem}")
            return findings
    told = Counter({("accepted", ""): manifest.accepted})
    for status, reasons in manifest.reasons.items():
        told.update({(status, reason): count for reason, count in reasons.items()})
    if counted != +told:
        findings.problems.append(f"{where}: its rows count {_readable(counted)}, its manifest {_readable(+told)}")
    made = {name: protocols[name] for name in manifest.fallbacks}
    if made != manifest.fallbacks:
        findings.problems.append(
            f"{where}: its fallback protocols made {made} of its dialogues, {dict(manifest.fallbacks)} are promised"
        )
    return findings


def _check_file(
    folder: DatasetFolder,
    entry: FileEntry,
    version: int,
    findings: ShardFindings,
    counted: Counter[tuple[str, str]],
    protocols: Counter[str],
    check_images: CheckImages | None,
    promised: Sequence[str],
) -> str | None:
    """Adds the problems of the rows to the findings; returns a problem only if the rows cannot be read at all."""
    try:
        with folder.open(entry.path) as file:
            if problem := entry.difference(digests(file)):
                return problem
            # The same open file: a gate pass may replace it meanwhile.
            file.seek(0)
            return _check_rows(open_parquet(file), entry, version, findings, counted, protocols, check_images, promised)
    except FileNotFoundError:
        return f"{entry.path} is missing"
    except Exception as error:  # noqa: BLE001 - Arrow may raise any error for a malformed file with a matching checksum
        said = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return f"{entry.path} cannot be read: {said}"


def _check_rows(
    parquet: pq.ParquetFile,
    entry: FileEntry,
    version: int,
    findings: ShardFindings,
    counted: Counter[tuple[str, str]],
    protocols: Counter[str],
    check_images: CheckImages | None,
    promised: Sequence[str],
) -> str | None:
    # Additional columns do no harm; the columns of the record must be there and have the right type.
    found = parquet.schema_arrow
    schema = schema_of(entry.path, version, found)
    wrong = [f.name for f in schema if f.name not in found.names or found.field(f.name).type != f.type]
    wrong += [name for name in promised if name not in found.names]
    if wrong:
        return f"{entry.path} lacks columns of the record or has them of another type: {wrong}"
    if parquet.metadata.num_rows != entry.rows:
        there = count_of(parquet.metadata.num_rows, "row")
        findings.problems.append(f"{entry.path} has {there}, {entry.rows} promised")
    per_pair = pair_columns(version)
    for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
        rows: list[dict[str, Any]] = batch.to_pylist()
        of_images = [None] * len(rows) if check_images is None else check_images(rows)
        for row, of_image in zip(rows, of_images, strict=True):
            counted[row.get("status", "accepted"), row.get("reason", "")] += 1
            if "status" not in row:
                protocols[row["protocol"]] += 1
            if row["image_id"] is None:
                return f"{entry.path} cannot be read: a row has no image_id"
            findings.image_ids.append(row["image_id"])
            findings.pairs += len(row.get("texts") or ())
            for problem in (*_row_problems(row, per_pair), of_image):
                if problem:
                    findings.problems.append(f"{entry.path}: {row['image_id']!r}: {problem}")
    return None


def _row_problems(row: dict[str, Any], per_pair: Sequence[str]) -> list[str]:
    problems: list[str] = []
    # A dataset that was published by URL and hash has no image bytes: its images cannot be checked here.
    stored = stored_images(row)
    if stored and sha256_images(stored) != row["image_sha256"]:
        problems.append(f"image_sha256 is not that of the image{'s' if len(stored) > 1 else ''}")
    if "texts" in row and not all(pair["user"] and pair["assistant"] for pair in row["texts"] or [{"user": ""}]):
        problems.append("an accepted row without a complete question-answer pair")
    pairs = len(row.get("texts") or ())
    problems += [
        f"{column} has {count_of(len(values), 'entry')} for {count_of(pairs, 'pair')}"
        for column in per_pair
        if (values := row.get(column)) is not None and len(values) != pairs
    ]
    return problems


def _readable(counts: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{n} {status}{reason and f' ({reason})'}" for (status, reason), n in sorted(counts.items()))
