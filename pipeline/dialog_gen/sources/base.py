"""Image sources: the registry `SOURCES` of their kinds, and how a source is divided into shards.

A shard can be read on its own. It contains references to images, not image bytes: memory use grows with the largest
directory and the largest tar, not with the size of the source.

A kind of source is a subclass of `SourcePart`, in a module of this package, or of another package that lists the module
under its entry points `dialog_gen.sources`. A kind reads files with certain extensions, or URLs with certain schemes:

    @SOURCES.register("csv")
    class CsvOfImages(SourcePart):
        accepted = "*.csv (paths of images)"
        extensions = ("csv",)

        @classmethod
        def of_files(cls, files: FileSet) -> Iterator[SourcePart]: ...
        def identity(self) -> object: ...
        def shard_name(self, number: int) -> str: ...
        def index(self) -> Iterator[ImageReference]: ...
        def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]: ...
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from typing import ClassVar, Final, NamedTuple

import fsspec

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry
from dialog_gen.sources.listing import FileSet, printable, stem

_PRECEDENCE: Final = ("webdataset", "images", "parquet")
"""The order in which kinds are tried if a folder has files of several kinds; all other kinds follow in the registry's
order."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image as stored, and what its source says about it; `path` is its file name."""

    image_id: str
    data: bytes
    path: str | None = None
    url: str | None = None
    caption: str | None = None
    source_sha256: str | None = None
    """Hash of the bytes that `url` served; None if the source does not say."""


class ImageReference(NamedTuple):
    """The location of one image in a `SourcePart`. Each kind uses the fields in its own way, except `image_id`.

    `sizes` are the sizes in bytes of the image and of the texts that belong to it, None for a missing one; the shard's
    fingerprint covers them. `places` says where each of them begins.
    """

    image_id: str
    name: str = ""
    sizes: tuple[int | None, ...] = ()
    places: tuple[int, ...] = ()


class SourcePart(ABC):
    """A part of a source that is divided into shards: a tar, a Parquet file, or all image files of a folder.

    Each kind of source is a subclass.
    """

    accepted: ClassVar[str]
    """What the kind accepts, for help and error messages, such as "*.parquet"."""
    extensions: ClassVar[tuple[str, ...]] = ()
    """Extensions of the files that the kind reads, in lower case, without the dot."""
    schemes: ClassVar[tuple[str, ...]] = ()
    """Schemes of the URLs that the kind reads by itself; the schemes of fsspec cannot be used."""

    @classmethod
    def of_files(cls, files: FileSet) -> Iterable["SourcePart"]:
        """Returns the parts of a source that has files with these extensions, in a stable order."""
        raise NotImplementedError(f"{cls.__name__} has extensions but no of_files")

    @classmethod
    def of_url(cls, url: str) -> Iterable["SourcePart"]:
        """Returns the parts of a source at a URL with one of these schemes, in a stable order."""
        raise NotImplementedError(f"{cls.__name__} has schemes but no of_url")

    @abstractmethod
    def identity(self) -> object:
        """What identifies this part and is the same in every run, such as its URL; made of JSON values."""

    @abstractmethod
    def shard_name(self, number: int) -> str:
        """The name of shard `number` of this part, counted from 0: unique in the source, valid as a file name."""

    @abstractmethod
    def index(self) -> Iterator[ImageReference]:
        """All images, in a stable order. Raises UsageError if the part is damaged or not complete."""

    @abstractmethod
    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Reads images that `index` listed, in the same order.

        Raises UsageError if a file is missing or unreadable, or has changed since it was indexed.
        """


SOURCES: Final = Registry[type[SourcePart]]("image source", "dialog_gen.sources", base=SourcePart, classes=True)


@dataclass(frozen=True, slots=True)
class InputShard:
    """The unit of work. `name` is unique in its source, stable, and valid as a file name.

    `fingerprint` covers the address of the input, and for each image its id and the sizes in bytes of the image and its
    texts. For Parquet it covers the ids and the size of the file. It does not cover modification times. The `head` of a
    shard has the fingerprint of the whole shard, so that a limit does not make the input look changed.
    """

    name: str
    count: int
    fingerprint: str
    _part: SourcePart = field(repr=False)
    _references: tuple[ImageReference, ...] = field(repr=False)

    def image_ids(self) -> list[str]:
        """The ids of the images, in order; reads no files."""
        return [reference.image_id for reference in self._references]

    def read(self) -> Iterator[SourceImage]:
        """The images, in order. Raises UsageError if a file is missing, unreadable, or changed since it was indexed."""
        return self._part.read(self._references)

    def head(self, count: int) -> "InputShard":
        """The first `count` images, with the same name and fingerprint. Raises ValueError if `count` is negative."""
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        return self if count >= self.count else replace(self, count=count, _references=self._references[:count])


def open_source(spec: str, *, shard_size: int) -> Iterator[InputShard]:
    """Divides the images at `spec` into shards of at most `shard_size` images, in a stable order.

    Only one kind is read: tars if there are any, otherwise image files, otherwise Parquet files, otherwise files of
    another package's kind. Raises UsageError if there are no images. While it is iterated, raises UsageError for a file
    that is damaged, incomplete or has a duplicate id. Raises ValueError if `shard_size` is less than 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be 1 or more, got {shard_size}")
    shards = (shard for part in _parts(spec) for shard in _shards(part, shard_size))
    first = next(shards, None)
    if first is None:
        raise UsageError(f"no images in {spec}: looked for {accepted_forms()}")
    return chain([first], shards)


def with_limit(shards: Iterable[InputShard], limit: int | None) -> Iterator[InputShard]:
    """The shards of the first `limit` images; the last shard is shortened. Raises ValueError if `limit` is negative."""
    if limit is None:
        yield from shards
        return
    if limit < 0:
        raise ValueError(f"limit must be 0 or more, got {limit}")
    remaining = iter(shards)
    # Does not fetch a shard beyond the last one: indexing a shard can take long.
    while limit and (shard := next(remaining, None)):
        yield shard.head(limit)
        limit -= min(limit, shard.count)


def accepted_forms() -> str:
    """What all kinds of sources accept, for help and error messages."""
    *forms, last = (kind.accepted for kind in _kinds())
    return f"{', '.join(forms)} or {last}; in a folder, a glob or a URL"


def safe_shard_name(relative: str, number: int) -> str:
    """A shard's name, made from the path of its file and its number in that file."""
    readable = printable(stem(relative))
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", readable)[:100]
    if safe != readable:
        safe += "-" + hashlib.sha256(readable.encode()).hexdigest()[:8]
    return f"{safe}-{number:03d}"


def _kinds() -> Iterator[type[SourcePart]]:
    """The kinds by precedence; those of other packages are imported only when their turn comes."""
    own = SOURCES.own()
    yield from (own[name] for name in _PRECEDENCE)
    # One that cannot be imported may be the very one that is needed here: an error, not a warning.
    yield from (SOURCES.get(name) for name in SOURCES.names() if name not in _PRECEDENCE)


def _parts(spec: str) -> Iterable[SourcePart]:
    scheme, separator, _ = spec.partition("://")
    if separator and scheme not in fsspec.available_protocols():
        for kind in _kinds():
            if scheme in kind.schemes:
                return kind.of_url(spec)
    files = FileSet.of(spec, accepted_forms)
    first, found = next(_kinds()), set[str]()
    for file in files.files():
        found.add(file.extension)
        if file.extension in first.extensions:
            break
    kind = next((kind for kind in _kinds() if found.intersection(kind.extensions)), None)
    return () if kind is None else kind.of_files(files)


def _shards(part: SourcePart, shard_size: int) -> Iterator[InputShard]:
    index = part.index()
    for number in count():
        references = tuple(islice(index, shard_size))
        if not references:
            return
        image_id, times = Counter(reference.image_id for reference in references).most_common(1)[0]
        if times > 1:
            raise UsageError(f"{part.identity()} has the image id {image_id!r} {times} times: ids must be unique")
        digest = hashlib.sha256()
        for value in chain([part.identity()], ((reference.image_id, reference.sizes) for reference in references)):
            digest.update(json.dumps(value).encode() + b"\n")
        yield InputShard(part.shard_name(number), len(references), digest.hexdigest(), part, references)
