"""Images of a dialogues dataset, held out for choices or not: a choice must not be made on what it is measured on.

An image's SHA-256 decides on which side it is, so equal images are on one side, in every dataset.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.errors import NoDatasetError
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.record import kept_pairs
from dialog_gen.sources.base import SourceImage

HELD_OUT_SHARE = 0.1

_COLUMNS = ["image_sha256", "images", "caption", "texts", "gates"]
_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image, with the question-answer pairs that the quality gates keep."""

    image: SourceImage
    """Its id is the image's SHA-256."""
    pairs: list[tuple[str, str]]


def open_given(flag: str, location: str) -> DatasetFolder:
    """Opens the dataset that an option names; reads no rows. Raises UsageError, with the flag, for what is none."""
    try:
        return open_dataset(location)
    except NoDatasetError as error:
        told = str(error).rstrip(".")
        raise UsageError(f"{flag}: {told}: give a folder that `dialog-gen run --out` wrote.") from None


def short_name(location: str) -> str:
    """The last part of a path or URL."""
    return location.rstrip("/").rpartition("/")[2] or location


def is_held_out(image_sha256: str) -> bool:
    """Whether an image is among the tenth that is held out."""
    return int(image_sha256[:_DIGITS], 16) < HELD_OUT_SHARE * 16**_DIGITS


def pictures(
    dataset: DatasetFolder, *, most: int, uses: Callable[[str], bool] = lambda image_sha256: True
) -> Iterator[Picture]:
    """The first `most` distinct images of a dataset whose SHA-256 `uses` accepts, without dialogues about several.

    Raises UsageError for a dataset that was published without its images, and for a damaged one.
    """
    seen: set[str] = set()
    for row in dataset.rows(_COLUMNS):
        sha256 = row["image_sha256"]
        if sha256 in seen or not uses(sha256):
            continue
        if not row["images"]:
            raise UsageError(
                f"{dataset.location} has no images, which choosing a weight and reference images need: "
                "give a dataset with its images."
            )
        # Texts about several images are those of none of them.
        if len(row["images"]) > 1:
            continue
        seen.add(sha256)
        yield Picture(
            image=SourceImage(sha256, row["images"][0]["bytes"], caption=row["caption"]),
            pairs=[(pair["user"], pair["assistant"]) for pair in kept_pairs(row)],
        )
        if len(seen) == most:
            return
