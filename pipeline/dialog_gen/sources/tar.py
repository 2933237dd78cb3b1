"""Webdataset tars: a sample is an image, its caption (.txt) and its metadata (.json), which have the same key."""

import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from dialog_gen.core.errors import UsageError
from dialog_gen.sources.base import SOURCES, ImageReference, SourceImage, SourcePart, safe_shard_name
from dialog_gen.sources.images import IMAGE_EXTENSIONS
from dialog_gen.sources.listing import FileSet, Folder, name_of, printable, stem

_log = logging.getLogger(__name__)


@SOURCES.register("webdataset")
@dataclass(frozen=True, slots=True)
class Tar(SourcePart):
    """One tar. The id of an image is the tar's path without extension, a slash, and the sample's key."""

    accepted: ClassVar[str] = "*.tar (webdataset)"
    extensions: ClassVar[tuple[str, ...]] = ("tar",)

    files: FileSet
    path: str

    @classmethod
    def of_files(cls, files: FileSet) -> Iterator["Tar"]:
        """One part per tar. Raises UsageError for a tar that img2dataset has not finished."""
        tars = (file for file in files.files() if file.extension in cls.extensions)
        for folder, of_folder in groupby(tars, lambda tar: tar.folder):
            # img2dataset writes the statistics of a tar after the tar is complete.
            by_img2dataset = _has_statistics(folder)
            for tar in of_folder:
                if by_img2dataset and tar.size_of("_stats.json") is None:
                    raise UsageError(
                        f"{tar.path} is not complete: it has no _stats.json yet. Finish the download first"
                    )
                yield cls(files, tar.path)

    def identity(self) -> str:
        """The tar's URL."""
        return self.files.url(self.path)

    def shard_name(self, number: int) -> str:
        """The tar's path and the number."""
        return safe_shard_name(self.files.relative(self.path), number)

    def index(self) -> Iterator[ImageReference]:
        """The samples in the order of the tar. As in webdataset, a key is the path up to the first dot in the name."""
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with self.files.open(self.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    key, _, ending = name.partition(".")
                    # A sparse member is not stored in one piece.
                    if not key or not member.isreg() or member.issparse():
                        continue
                    kind = ending.rpartition(".")[2].lower()
                    if kind not in (*IMAGE_EXTENSIONS, "txt", "json"):
                        continue
                    sample = samples.setdefault(folder + slash + key, {})
                    if any(name_of(member.name) == name_of(other.name) for other in sample.values()):
                        raise UsageError(
                            f"{self.path} has {folder + slash + key!r} twice: keys must be unique in a tar"
                        )
                    sample.setdefault("image" if kind in IMAGE_EXTENSIONS else kind, member)
                # tarfile treats a truncated or damaged header as the end of the tar. The real end is a block of zeros.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no end mark")
        except (tarfile.TarError, ValueError) as error:
            raise UsageError(f"{self.path} is damaged or cut short ({error}): download it again") from error
        prefix = stem(self.files.relative(self.path))
        without = [key for key, sample in samples.items() if "image" not in sample]
        if without:
            _log.warning("%s: %d samples have no image and are skipped, %r first", self.path, len(without), without[0])
        for key, sample in samples.items():
            if "image" in sample:
                members = [sample.get(kind) for kind in ("image", "txt", "json")]
                sizes = tuple(member and member.size for member in members)
                places = tuple(member.offset_data if member else 0 for member in members)
                name = printable(name_of(sample["image"].name))
                yield ImageReference(printable(f"{prefix}/{key}"), name, sizes, places)

    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Reads the members at their indexed offsets, without reading the headers again."""
        with self.files.open(self.path) as file:
            for reference in references:
                parts: list[bytes | None] = []
                for size, place in zip(reference.sizes, reference.places, strict=True):
                    file.seek(place)
                    parts.append(None if size is None else file.read(size))
                    if size is not None and len(parts[-1] or b"") < size:
                        raise UsageError(f"{self.path} was cut short since it was indexed: download it again")
                image, text, metadata = parts
                about = _metadata(metadata or b"{}", reference.image_id)
                caption = about.get("caption") if text is None else text.decode("utf-8", "replace").strip() or None
                # img2dataset's hash covers the bytes that it fetched, before it resized and encoded them again.
                sha256 = about.get("sha256")
                yield SourceImage(reference.image_id, image or b"", reference.name, about.get("url"), caption, sha256)


def _has_statistics(folder: Folder) -> bool:
    """Whether any tar of the folder has a file of statistics."""
    names = folder.sizes
    return any(f"{name.removesuffix('_stats.json')}.tar" in names for name in names if name.endswith("_stats.json"))


def _metadata(data: bytes, image_id: str) -> dict[str, str]:
    try:
        parsed: Any = json.loads(data)
    except (ValueError, RecursionError):
        _log.warning("%s: its .json cannot be read and is ignored", image_id)
        return {}
    if not isinstance(parsed, dict):
        return {}
    # JSON may contain half a surrogate pair ("\\ud83d"), which UTF-8 cannot encode.
    texts = {key: value for key, value in parsed.items() if isinstance(value, str)}
    return {key: value.encode("utf-8", "replace").decode() for key, value in texts.items()}
