"""Exports a dataset to a format that other programs read; `dialog_gen.publish.formats` has one writer per format."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from dialog_gen.core.duplicates import DuplicateFinder
from dialog_gen.core.errors import UsageError, check_at_least
from dialog_gen.core.files import whole_folder
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.intact import footer, intact_manifests, refuse_repeated_ids
from dialog_gen.dataset.record import STATEMENTS, kept_places, stored_images
from dialog_gen.dataset.verify import totals
from dialog_gen.gates.summary import without_gates
from dialog_gen.publish.formats.base import FORMATS, Sample

_COLUMNS = ("image_id", "image_sha256", "images", "url", "source_sha256", "caption", "texts", STATEMENTS, "gates")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """Counts of what was written and what was left out."""

    out: str
    to: str
    images: int
    pairs: int
    marked_pairs_left_out: int
    images_without_kept_pairs: int
    images_without_bytes: int

    def __str__(self) -> str:
        left_out = [
            f"{count_of(count, noun)}{rest}"
            for count, noun, rest in (
                (self.marked_pairs_left_out, "marked pair", ""),
                (self.images_without_kept_pairs, "image", " without a pair that is kept"),
                (self.images_without_bytes, "row", " without image"),
            )
            if count
        ]
        text = (
            f"{self.out}: {count_of(self.images, 'image')}, {count_of(self.pairs, 'question-answer pair')} as {self.to}"
        )
        return f"{text}; left out: {', '.join(left_out)}" if left_out else text


@dataclass(slots=True)
class _Counts:
    """The counts of an `ExportSummary`, which grow while samples are written."""

    images: int = 0
    pairs: int = 0
    marked_pairs_left_out: int = 0
    images_without_kept_pairs: int = 0
    images_without_bytes: int = 0


def export(
    dataset: str | Path | DatasetFolder,
    out: str | Path,
    *,
    to: str,
    kept_only: bool = False,
    limit: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ExportSummary:
    """Writes the accepted dialogues to the local folder `out`. After an error, `out` does not exist.

    `to` is the name of an export format, `limit` the highest number of images. `kept_only` leaves out pairs that a
    gate marked, and images that have no other pairs.

    Raises UsageError for an unknown format, a damaged dataset, a repeated id, a shard without gates (with `kept_only`),
    an `out` that exists or is a URL, and if there is nothing to write; DialogGenError if the disk fails.
    """
    new_writer = FORMATS.get(to, where="--to")
    if "://" in str(out):
        raise UsageError(f"--out {out} is not on this machine: give a local folder, and copy it from there.")
    if limit is not None:
        check_at_least("--limit", limit, 1)
    folder = open_dataset(dataset)
    accepted = totals(folder).accepted
    total = accepted if limit is None else min(limit, accepted)
    counts = _Counts()
    with whole_folder(Path(out)) as part, DuplicateFinder() as ids:
        writer = new_writer(part)
        for sample in islice(_samples(folder, counts, kept_only=kept_only), limit):
            writer.add(sample)
            ids.add([sample.image_id])
            counts.images += 1
            counts.pairs += len(sample.pairs)
            on_progress("exporting images", counts.images, total, "images")
        refuse_repeated_ids([folder], ids)
        # Not called after an error: a second error would hide the first one.
        writer.close()
        if not counts.images:
            raise UsageError(_nothing_to_export(folder, counts))
    return ExportSummary(out=str(out), to=to, **asdict(counts))


def _samples(folder: DatasetFolder, counts: _Counts, *, kept_only: bool) -> Iterator[Sample]:
    for manifest in intact_manifests(folder):
        if manifest.data is None:
            continue
        footer(folder, manifest.data)
        for table in folder.row_groups(manifest.data, _COLUMNS):
            for row in table.to_pylist():
                if kept_only and row["gates"] is None:
                    raise without_gates(folder.location, manifest.shard, "--kept-only")
                places = kept_places(row) if kept_only else range(len(row["texts"]))
                pairs, statements = [row["texts"][place] for place in places], row.get(STATEMENTS)
                counts.marked_pairs_left_out += len(row["texts"]) - len(pairs)
                if not pairs:
                    counts.images_without_kept_pairs += 1
                elif not (stored := stored_images(row)) or not all(stored):
                    counts.images_without_bytes += 1
                else:
                    yield Sample(
                        image_id=row["image_id"],
                        images=tuple(stored),
                        image_sha256=row["image_sha256"],
                        source_sha256=row["source_sha256"],
                        url=row["url"],
                        caption=row["caption"],
                        pairs=pairs,
                        statements=statements and [statements[place] for place in places],
                    )


def _nothing_to_export(folder: DatasetFolder, counts: _Counts) -> str:
    if counts.images_without_bytes:
        return f"{folder.location} holds no images, only their URLs: `dialog-gen rehydrate` fetches them."
    if counts.images_without_kept_pairs:
        return f"{folder.location}: every pair is marked by a gate, nothing is left: leave out --kept-only."
    return f"{folder.location} has no accepted dialogue: nothing to export."
