"""A dataset in the formats that other programs read; `dialog_gen.publish.formats` holds one writer a format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import whole_folder
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.intact import footer, intact_manifests
from dialog_gen.dataset.record import kept_pairs
from dialog_gen.gates.summary import without_gates
from dialog_gen.publish.formats import FORMATS, Format, Sample

_COLUMNS = ("image_id", "image_sha256", "images", "url", "source_sha256", "caption", "texts", "gates")


@dataclass(slots=True, kw_only=True)
class ExportSummary:
    """What was written, and what was left out."""

    out: str
    to: Format
    images: int = 0
    pairs: int = 0
    marked_pairs_left_out: int = 0
    images_without_kept_pairs: int = 0
    images_without_bytes: int = 0

    def __str__(self) -> str:
        left_out = [
            f"{count} {what}"
            for count, what in (
                (self.marked_pairs_left_out, "marked pairs"),
                (self.images_without_kept_pairs, "images without a pair that is kept"),
                (self.images_without_bytes, "rows without their image"),
            )
            if count
        ]
        text = f"{self.out}: {self.images} images, {self.pairs} question-answer pairs as {self.to}"
        return f"{text}; left out: {', '.join(left_out)}" if left_out else text


def export(
    folder: DatasetFolder,
    out: Path,
    *,
    to: Format,
    kept_only: bool = False,
    limit: int | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> ExportSummary:
    """Writes the accepted dialogues to `out`, up to `limit` images: whole or not at all.

    With `kept_only` without the pairs that a gate speaks against, and without images that have no other. Raises
    UsageError for a damaged dataset, one that gates did not go over (`kept_only`), an `out` that exists, and where
    nothing would be left to write.
    """
    summary = ExportSummary(out=str(out), to=to)
    with whole_folder(out) as part:
        writer = FORMATS[to](part)
        for sample in islice(_samples(folder, summary, kept_only=kept_only), limit):
            writer.add(sample)
            summary.images += 1
            summary.pairs += len(sample.pairs)
            on_image()
        # Not after an error: a second one would hide it.
        writer.close()
        if not summary.images:
            raise UsageError(_nothing(folder, summary))
    return summary


def _samples(folder: DatasetFolder, summary: ExportSummary, *, kept_only: bool) -> Iterator[Sample]:
    for manifest in intact_manifests(folder):
        if manifest.data is None:
            continue
        footer(folder, manifest.data)
        for table in folder.row_groups(manifest.data, _COLUMNS):
            for row in table.to_pylist():
                if kept_only and row["gates"] is None:
                    raise without_gates(folder.location, manifest.shard, "--kept-only")
                pairs = kept_pairs(row) if kept_only else row["texts"]
                summary.marked_pairs_left_out += len(row["texts"]) - len(pairs)
                if not pairs:
                    summary.images_without_kept_pairs += 1
                elif not (data := image_bytes(row)):
                    summary.images_without_bytes += 1
                else:
                    yield Sample(
                        image_id=row["image_id"],
                        image=data,
                        image_sha256=row["image_sha256"],
                        source_sha256=row["source_sha256"],
                        url=row["url"],
                        caption=row["caption"],
                        pairs=pairs,
                    )


def image_bytes(row: dict[str, Any]) -> bytes | None:
    """The bytes of a row's image; None where they were left out."""
    images = row["images"] or ()
    return images[0]["bytes"] if images else None


def _nothing(folder: DatasetFolder, summary: ExportSummary) -> str:
    if summary.images_without_bytes:
        return f"{folder.location} holds no images, only their URLs: `dialog-gen rehydrate` fetches them."
    if summary.images_without_kept_pairs:
        return f"{folder.location}: every pair is marked by a gate, nothing is left: leave out --kept-only."
    return f"{folder.location} has no accepted dialogue: nothing to export."
