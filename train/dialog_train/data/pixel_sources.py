"""Sources of a pixel set: stored images with captions and, from a dialogues dataset, dialogues."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.sources.base import InputShard, open_source
from dialog_train.config import PixelSettings
from dialog_train.data.derived import Source, identity_of_dataset, read_rows, single_image, sources_of
from dialog_train.data.training_set import DIALOGUE_FORMATS, DialogueFormat

_SHARD_SIZE = 1024
_ROWS_PER_BATCH = 64
_COLUMNS = ["image_id", "images", "caption", "texts"]


class StoredImage(NamedTuple):
    """An image's bytes and texts."""

    image_id: str
    data: bytes | str
    """The bytes, or why there is no image (`derived.single_image`)."""
    caption: str | None
    dialogues: list[str] | None
    """The text of each question-answer pair; None if the source has no dialogues."""


@dataclass(frozen=True, slots=True)
class PixelShard:
    """Images that are decoded into one file."""

    name: str
    fingerprint: str
    """Hash that changes when the content changes."""
    read: Callable[[], Iterator[StoredImage]]


class PixelSource(Protocol):
    """Where the images of a pixel set come from."""

    @property
    def config(self) -> dict[str, Any]:
        """Identifies the source, as JSON values."""
        ...

    def shards(self) -> Iterator[PixelShard]:
        """The shards, in order. Raises UsageError if data is missing or damaged."""
        ...


def open_pixel_source(settings: PixelSettings) -> PixelSource:
    """Opens the source that a recipe names. Raises UsageError for a dataset that does not exist."""
    if settings.images is not None:
        return CaptionedImages(settings.images)
    assert settings.dialogues is not None  # noqa: S101 - the settings have one of the two
    return DialogueImages(DatasetFolder.existing(settings.dialogues), kept_only=settings.kept_only)


@dataclass(frozen=True, slots=True)
class CaptionedImages:
    """Images with captions, from any location that `open_source` can read."""

    location: str

    @property
    def config(self) -> dict[str, Any]:
        """Implements `PixelSource`."""
        return {"images": self.location}

    def shards(self) -> Iterator[PixelShard]:
        """Implements `PixelSource`."""
        for shard in open_source(self.location, shard_size=_SHARD_SIZE):
            yield PixelShard(shard.name, shard.fingerprint, partial(_captioned, shard))


@dataclass(frozen=True, slots=True)
class DialogueImages:
    """The accepted rows of a dialogues dataset; `kept_only` leaves out pairs that a quality gate marked."""

    dataset: DatasetFolder
    kept_only: bool = False
    dialogue_format: DialogueFormat = "question_answer"

    @property
    def config(self) -> dict[str, Any]:
        """Implements `PixelSource`."""
        own = {"dialogue_format": self.dialogue_format, "kept_only": self.kept_only}
        return {**identity_of_dataset(self.dataset), **own}

    def shards(self) -> Iterator[PixelShard]:
        """Implements `PixelSource`."""
        for source in sources_of(self.dataset):
            yield PixelShard(source.shard, source.sha256, partial(self._read, source))

    def _read(self, source: Source) -> Iterator[StoredImage]:
        text = DIALOGUE_FORMATS[self.dialogue_format]
        for rows in read_rows(self.dataset, source, _COLUMNS, kept_only=self.kept_only, batch_size=_ROWS_PER_BATCH):
            for row in rows:
                texts = [text.format_map(pair) for pair in row["texts"]]
                yield StoredImage(row["image_id"], single_image(row), row["caption"], texts)


def frequent_questions(settings: PixelSettings, count: int = 3) -> list[str]:
    """The `count` most frequent questions of the dialogues, most frequent first; empty if there are no dialogues."""
    if settings.dialogues is None:
        return []
    dataset = DatasetFolder.existing(settings.dialogues)
    asked = Counter[str]()
    for source in sources_of(dataset):
        for rows in read_rows(dataset, source, ["texts"]):
            asked.update(pair["user"] for row in rows for pair in row["texts"])
    # Ties are broken alphabetically, so the result is deterministic.
    return sorted(asked, key=lambda question: (-asked[question], question))[:count]


def _captioned(shard: InputShard) -> Iterator[StoredImage]:
    for image in shard.read():
        yield StoredImage(image.image_id, image.data, image.caption, None)
