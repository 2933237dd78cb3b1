"""The base class of export formats. A format writes samples into an empty folder, and is registered in `FORMATS`."""

import hashlib
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar

from PIL import Image, UnidentifiedImageError

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry
from dialog_gen.sources.images import FORMATS as IMAGE_FORMATS

_NAME_LENGTH = 80
_HASH_LENGTH = 12
# Many phones write MPO files: a JPEG followed by a second one.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image, or several, with the dialogue."""

    image_id: str
    images: tuple[bytes, ...]
    """At least one."""
    image_sha256: str
    source_sha256: str | None
    """SHA-256 of the bytes that the URL served, if the image was stored in another form."""
    url: str | None
    caption: str | None
    pairs: list[dict[str, str]]
    """Question-answer pairs in order, each with the keys `user` and `assistant`."""
    statements: list[str | None] | None = None
    """For each pair a sentence that says the same, if there is one; None if the dataset has no such column."""

    @property
    def name(self) -> str:
        """A file name without extension, which contains only a to z, digits, "_" and "-".

        Different ids have different names, even on file systems that ignore case.
        """
        plain = re.sub(r"[^a-z0-9_-]+", "_", self.image_id.lower())[:_NAME_LENGTH]
        if plain == self.image_id and plain and not re.search(rf"-[0-9a-f]{{{_HASH_LENGTH}}}$", plain):
            return plain
        return f"{plain}-{hashlib.sha256(self.image_id.encode()).hexdigest()[:_HASH_LENGTH]}"

    @property
    def files(self) -> list[tuple[str, bytes]]:
        """The name and the bytes of each image: NAME.jpg, then NAME.2.png, with the extension of the image's format.

        No name is that of another sample. Raises UsageError for bytes that are not an image.
        """
        return [
            (f"{self.name}{f'.{number}' if number > 1 else ''}.{self._extension(data)}", data)
            for number, data in enumerate(self.images, 1)
        ]

    def _extension(self, data: bytes) -> str:
        try:
            with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as image:
                return _EXTENSIONS.get(image.format or "", (image.format or "").lower())
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise UsageError(f"image {self.image_id!r} cannot be exported, it is no image: {error}.") from None


class SampleWriter(ABC):
    """Writes samples in one format. `out` is an empty folder, which is discarded if an error is raised."""

    description: ClassVar[str]
    """The files that the format writes, in one line, for help texts."""

    @abstractmethod
    def __init__(self, out: Path) -> None: ...

    @abstractmethod
    def add(self, sample: Sample) -> None:
        """Writes one sample; samples come in the order of the dataset."""

    @abstractmethod
    def close(self) -> None:
        """Completes the files. Not called after an error."""


FORMATS = Registry[type[SampleWriter]](
    "export format", "dialog_gen.publish.formats", base=SampleWriter, classes=True, group="dialog_gen.formats"
)
