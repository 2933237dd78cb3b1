"""Image files; the texts of an image may be in a .txt and a .json file of the same name, as img2dataset writes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from dialog_gen.sources.base import SOURCES, ImageReference, SourceImage, SourcePart, unused_file
from dialog_gen.sources.images import IMAGE_EXTENSIONS
from dialog_gen.sources.listing import FileSet, ListedFile, name_of, printable, stem
from dialog_gen.sources.sidecars import read_texts
from dialog_gen.sources.unused import Unused


@SOURCES.register("images")
@dataclass(frozen=True, slots=True)
class ImageFiles(SourcePart):
    """All image files of a source. The id of an image is its path relative to the source's root.

    The fingerprint of a shard covers the sizes of the images and of their .txt files. It does not cover .json files:
    datasets that were begun when those were not read can be continued.
    """

    accepted: ClassVar[str] = f"image files ({', '.join(IMAGE_EXTENSIONS)})"
    extensions: ClassVar[tuple[str, ...]] = IMAGE_EXTENSIONS

    files: FileSet

    @classmethod
    def of_files(cls, files: FileSet) -> Iterator["ImageFiles"]:
        """One part with all files."""
        yield cls(files)

    @classmethod
    def unused_files(cls, files: FileSet) -> Iterator[Unused]:
        """None: the index of the one part has them."""
        return iter(())

    def identity(self) -> str:
        """The URL of the root folder."""
        return self.files.url(self.files.root)

    def shard_name(self, number: int) -> str:
        """The number only, since the files of a shard may be in several folders."""
        return f"images-{number:06d}"

    def id_prefix(self) -> str:
        """Nothing: paths are unique."""
        return ""

    def index(self) -> Iterator[ImageReference | Unused]:
        """All image files, sorted by path, and all other files except the texts of the images."""
        for file in self.files.files():
            if file.extension in self.extensions:
                name = self.files.relative(file.path)
                has_json = file.size_of(".json") is not None
                yield ImageReference(printable(name), name, (file.size, file.size_of(".txt")), (int(has_json),))
            elif file.is_hidden or file.is_dead_link or not _is_text_of_image(file):
                unused = unused_file(self.files, file)
                yield unused._replace(reason="other_file") if _is_about_folder(file) else unused

    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Reads the image files and their texts."""
        for reference in references:
            path = f"{self.files.root}/{reference.name}"
            caption = None if reference.sizes[1] is None else self._content(f"{stem(path)}.txt")
            metadata = self._content(f"{stem(path)}.json") if reference.places[0] else None
            texts = read_texts(caption, metadata, reference.image_id)
            yield SourceImage(reference.image_id, self._content(path), name_of(reference.image_id), *texts)

    def _content(self, path: str) -> bytes:
        with self.files.open(path) as file:
            return file.read()


def _is_text_of_image(file: ListedFile) -> bool:
    name = name_of(file.path)
    if not name.endswith((".txt", ".json")):
        return False
    return file.folder.has_file(stem(name), IMAGE_EXTENSIONS)


def _is_about_folder(file: ListedFile) -> bool:
    """Whether it is the table that img2dataset writes beside each folder of images."""
    return file.extension == "parquet" and stem(name_of(file.path)) in file.folder.folders
