"""Image files; the caption of an image may be in a .txt file of the same name."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from dialog_gen.sources.base import SOURCES, ImageReference, SourceImage, SourcePart
from dialog_gen.sources.images import IMAGE_EXTENSIONS
from dialog_gen.sources.listing import FileSet, name_of, printable, stem


@SOURCES.register("images")
@dataclass(frozen=True, slots=True)
class ImageFiles(SourcePart):
    """All image files of a source. The id of an image is its path relative to the source's root."""

    accepted: ClassVar[str] = f"image files ({', '.join(IMAGE_EXTENSIONS)})"
    extensions: ClassVar[tuple[str, ...]] = IMAGE_EXTENSIONS

    files: FileSet

    @classmethod
    def of_files(cls, files: FileSet) -> Iterator["ImageFiles"]:
        """One part with all files."""
        yield cls(files)

    def identity(self) -> str:
        """The URL of the root folder."""
        return self.files.url(self.files.root)

    def shard_name(self, number: int) -> str:
        """The number only, since the files of a shard may be in several folders."""
        return f"images-{number:06d}"

    def index(self) -> Iterator[ImageReference]:
        """All image files, sorted by path."""
        for file in self.files.files():
            if file.extension in self.extensions:
                name = self.files.relative(file.path)
                yield ImageReference(printable(name), name, (file.size, file.size_of(".txt")))

    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Reads the image files and their captions."""
        for reference in references:
            path = f"{self.files.root}/{reference.name}"
            text = b"" if reference.sizes[1] is None else self._content(f"{stem(path)}.txt")
            caption = text.decode("utf-8", "replace").strip() or None
            yield SourceImage(reference.image_id, self._content(path), name_of(reference.image_id), caption=caption)

    def _content(self, path: str) -> bytes:
        with self.files.open(path) as file:
            return file.read()
