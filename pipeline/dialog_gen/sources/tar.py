"""Webdataset tars: a sample is an image, its caption (.txt) and its metadata (.json), which have the same key."""

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any, ClassVar, Final

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.sources.base import (
    SOURCES,
    ImageReference,
    SourceImage,
    SourcePart,
    StoredImage,
    safe_shard_name,
    unused_file,
)
from dialog_gen.sources.kept import KeptReaders
from dialog_gen.sources.listing import FileSet, Folder, ListedFile, name_of, printable, stem
from dialog_gen.sources.samples import Member, Sample, kind_of, samples_of
from dialog_gen.sources.sidecars import read_texts
from dialog_gen.sources.tar_members import members_of
from dialog_gen.sources.unused import UNSUPPORTED_EXTENSIONS, Unused, UnusedReason

_COMPRESSED: Final = ("tar.gz", "tgz")
_UNPACKED: Final = KeptReaders[Any]()


@SOURCES.register("webdataset")
@dataclass(frozen=True, slots=True)
class Tar(SourcePart):
    """One tar. The id of an image is the tar's label, a slash, and the sample's key (see `samples`).

    The label is the tar's path without extension. If another tar in the folder has the same path without extension
    (`a.tar` and `a.TAR`), one of them keeps its extension (`Folder.labels`).
    """

    accepted: ClassVar[str] = "*.tar, *.tar.gz (webdataset)"
    extensions: ClassVar[tuple[str, ...]] = ("tar", *_COMPRESSED)

    files: FileSet
    path: str
    label: str
    is_repeated: bool
    is_compressed: bool
    all_images: bool = False

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
                name = name_of(tar.path)
                label, is_repeated = folder.labels(cls.extensions)[name]
                path = files.relative(tar.path).removesuffix(name) + label
                yield cls(files, tar.path, path, is_repeated, tar.extension in _COMPRESSED)

    @classmethod
    def unused_files(cls, files: FileSet) -> Iterator[Unused]:
        """All other files but the tables and statistics that img2dataset writes beside each tar."""
        for file in files.files():
            if file.extension not in cls.extensions and not _is_about_tar(file):
                yield unused_file(files, file)

    def with_all_images(self) -> "Tar":
        """The tar with all images of each key."""
        return replace(self, all_images=True)

    def identity(self) -> str:
        """The tar's URL."""
        return self.files.url(self.path)

    def path_in_source(self) -> str:
        """The tar's label."""
        return printable(self.label)

    def id_prefix(self) -> str:
        """The tar's label and a slash."""
        return f"{self.path_in_source()}/"

    def shard_name(self, number: int) -> str:
        """The tar's label and the number."""
        return safe_shard_name(self.path_in_source(), number, is_repeated=self.is_repeated)

    def index(self) -> Iterator[ImageReference | Unused]:
        """What is not used, then the samples in the order of the tar."""
        keys, others, first = dict[str, dict[str, Member]](), Counter[UnusedReason](), dict[UnusedReason, str]()
        plain = set[str]()
        try:
            with self._opened() as file:
                for member in members_of(file):
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    key, _, ending = name.partition(".")
                    key = key and folder + slash + key
                    reason = _reason(member, key, ending)
                    if reason is not None:
                        others[reason] += 1
                        first.setdefault(reason, printable(member.name))
                        if "." not in ending:
                            plain.add(key)
                    elif key and member.isreg():
                        if ending in keys.setdefault(key, {}):
                            raise UsageError(f"{self.path} has {key!r} twice: keys must be unique in a tar")
                        keys[key][ending] = Member(name, ending, member.size, member.offset_data)
        except (tarfile.TarError, ValueError) as error:
            raise UsageError(f"{self.path} is damaged or cut short ({error}): download it again") from error
        for reason, number in others.items():
            yield Unused(f"{self.path_in_source()}/{first[reason]}", reason, number)
        samples = chain.from_iterable(
            samples_of(key, members, key in plain, all_images=self.all_images) for key, members in keys.items()
        )
        for item in samples:
            yield self._reference(item) if isinstance(item, Sample) else self._unused(item)

    def _reference(self, sample: Sample) -> ImageReference:
        first, *more = sample.images
        members = first, sample.caption, sample.metadata, *more
        return ImageReference(
            printable(f"{self.label}/{sample.key}"),
            printable(first.name),
            tuple(member and member.size for member in members),
            tuple(member.place if member else 0 for member in members),
            tuple(printable(member.name) for member in more),
        )

    def _unused(self, item: Unused) -> Unused:
        return item._replace(name=printable(f"{self.label}/{item.name}"))

    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Reads the members at their indexed offsets, without reading the headers again."""
        with self._opened() as file:
            for reference in references:
                parts: list[bytes | None] = []
                for size, place in zip(reference.sizes, reference.places, strict=True):
                    file.seek(place)
                    parts.append(None if size is None else file.read(size))
                    if size is not None and len(parts[-1] or b"") < size:
                        raise UsageError(f"{self.path} was cut short since it was indexed: download it again")
                image, caption, metadata, *others = parts
                texts = read_texts(caption, metadata, reference.image_id)
                more = tuple(StoredImage(data or b"", name) for data, name in zip(others, reference.more, strict=True))
                yield SourceImage(reference.image_id, image or b"", reference.name, *texts, more=more)

    @contextmanager
    def _opened(self) -> Generator[Any]:
        """Opens the tar. A compressed tar is unpacked once and kept for the next shard, without a name on disk."""
        if not self.is_compressed:
            with self.files.open(self.path) as file:
                yield file
            return
        unpacked = _UNPACKED.take(self) or self._unpack()
        try:
            unpacked.seek(0)
            yield unpacked
        finally:
            _UNPACKED.keep(self, unpacked)

    def _unpack(self) -> Any:
        unpacked = tempfile.TemporaryFile(prefix="dialog-gen-")  # noqa: SIM115 - it stays open
        try:
            with self.files.open(self.path) as file, gzip.open(file) as content:
                shutil.copyfileobj(content, unpacked, 1 << 20)
            unpacked.flush()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            unpacked.close()
            raise UsageError(f"{self.path} is damaged or cut short ({error}): download it again") from error
        except OSError as error:
            unpacked.close()
            raise DialogGenError(
                f"{self.path} cannot be unpacked in {tempfile.gettempdir()}: {error}. Unpack it yourself, or "
                "set TMPDIR to a larger disk."
            ) from error
        except BaseException:
            unpacked.close()
            raise
        return unpacked


def _reason(member: tarfile.TarInfo, key: str, ending: str) -> UnusedReason | None:
    """Why a member is not part of a sample; None for one that is, and for what is no file, such as a folder."""
    if member.issym() or member.islnk():
        return "link"
    if not member.isreg():
        return None
    if key and kind_of(ending) and not member.issparse():  # a sparse member is not stored in one piece
        return None
    return "unsupported_format" if ending.rpartition(".")[2].lower() in UNSUPPORTED_EXTENSIONS else "other_file"


def _has_statistics(folder: Folder) -> bool:
    """Whether any tar of the folder has a file of statistics."""
    names = folder.sizes
    return any(f"{name.removesuffix('_stats.json')}.tar" in names for name in names if name.endswith("_stats.json"))


def _is_about_tar(file: ListedFile) -> bool:
    """Whether it is one of the files that img2dataset writes beside a tar: a table, or statistics."""
    name = name_of(file.path)
    of = name.removesuffix("_stats.json") if name.endswith("_stats.json") else stem(name)
    return file.extension in ("json", "parquet") and f"{of}.tar" in file.folder.sizes
