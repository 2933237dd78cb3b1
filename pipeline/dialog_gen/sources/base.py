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
        def index(self) -> Iterator[ImageReference | Unused]: ...
        def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]: ...
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import ClassVar, Final, NamedTuple

import fsspec

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry
from dialog_gen.sources.listing import FileSet, ListedFile, extension_of, printable
from dialog_gen.sources.unused import UNSUPPORTED_EXTENSIONS, Unused, UnusedReason, UnusedTally

_PRECEDENCE: Final = ("webdataset", "images", "parquet")
"""The order in which kinds are tried if a folder has files of several kinds; all other kinds follow in the registry's
order."""


class StoredImage(NamedTuple):
    """The bytes of an image as stored, and its file name. `missing` is as in `SourceImage`."""

    data: bytes
    path: str | None = None
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image as stored, and what its source says about it; `path` is its file name.

    A sample of several images has them in `more`, without the first.
    """

    image_id: str
    data: bytes
    path: str | None = None
    url: str | None = None
    caption: str | None = None
    source_sha256: str | None = None
    """Hash of the bytes that `url` served; None if the source does not say."""
    missing: str | None = None
    """Why there are no bytes although the source names a file; None if there are bytes, or if nothing is named."""
    more: tuple[StoredImage, ...] = ()
    """The further images of the sample; empty unless `SourcePart.with_all_images` was asked for."""

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """All images of the sample, in order."""
        return (StoredImage(self.data, self.path, self.missing), *self.more)


class ImageReference(NamedTuple):
    """The location of one image in a `SourcePart`. Each kind uses the fields in its own way, except `image_id`.

    `sizes` are the sizes in bytes of the image and of the texts that belong to it, None for a missing one; the shard's
    fingerprint covers them. `places` says where each of them begins. `more` are the names of further images, whose
    sizes and places are the last ones.
    """

    image_id: str
    name: str = ""
    sizes: tuple[int | None, ...] = ()
    places: tuple[int, ...] = ()
    more: tuple[str, ...] = ()


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

    def id_prefix(self) -> str | None:
        """What each id of this part begins with if the part itself ensures that its ids are unique in it.

        It ends with a slash, or is empty if the source has one part. None if ids are taken from data, which may
        contain duplicates.
        """
        return None

    def path_in_source(self) -> str:
        """The part's path in its source as printable text, unique in the source: ids can be prefixed with it."""
        return str(self.identity())

    def with_all_images(self) -> "SourcePart":
        """The part with all images of each sample (`SourceImage.more`), with the same ids.

        By default the part itself: a kind whose samples have one image each.
        """
        return self

    @classmethod
    def unused_files(cls, files: FileSet) -> Iterator[Unused]:
        """The files of a source of this kind that no part of it indexes."""
        for file in files.files():
            if file.extension not in cls.extensions:
                yield unused_file(files, file)

    @abstractmethod
    def index(self) -> Iterator[ImageReference | Unused]:
        """All images, in a stable order, and whatever else is in the part and is not used, at any place between them.

        Raises UsageError if the part is damaged or not complete.
        """

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
    unused: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    """Reason (`UNUSED_REASONS`) -> number of things that are there and not used: those before the shard's first image
    if it is the first of its part, and those up to the first image of the next shard. Not in the fingerprint."""
    unused_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]], hash=False)
    """Reason -> the first names."""

    def image_ids(self) -> list[str]:
        """The ids of the images, in order; reads no files."""
        return [reference.image_id for reference in self._references]

    def image_sizes(self) -> list[int]:
        """The sizes of the images in bytes, of those whose size the index knows; reads no files."""
        return [reference.sizes[0] for reference in self._references if reference.sizes and reference.sizes[0]]

    def read(self) -> Iterator[SourceImage]:
        """The images, in order. Raises UsageError if a file is missing, unreadable, or changed since it was indexed."""
        return self._part.read(self._references)

    def only(self, image_ids: Set[str]) -> "InputShard":
        """Those of its images that have one of the ids, with the same name and fingerprint; others are not read."""
        kept = tuple(reference for reference in self._references if reference.image_id in image_ids)
        return replace(self, count=len(kept), _references=kept)

    def head(self, count: int) -> "InputShard":
        """The first `count` images, with the same name and fingerprint. Raises ValueError if `count` is negative."""
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        return self if count >= self.count else replace(self, count=count, _references=self._references[:count])


def open_source(
    spec: str, *, shard_size: int, prefix_ids: bool = False, all_images: bool = False
) -> Iterator[InputShard]:
    """Divides the images at `spec` into shards of at most `shard_size` images, in a stable order.

    Only one kind is read: tars if there are any, otherwise image files, otherwise Parquet files, otherwise files of
    another package's kind. Whatever else is there is counted in `InputShard.unused`; a part of a source that has no
    image at all gives a shard of 0 images. With `prefix_ids`, ids from data get the path of their file as a prefix.
    With `all_images`, a sample has all its images; otherwise it has the first, and the others are counted as unused.

    Raises UsageError if there are no images. While it is iterated, raises UsageError for a file that is damaged,
    incomplete or has a duplicate id in a shard. Raises ValueError if `shard_size` is less than 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be 1 or more, got {shard_size}")
    source = Source.of(spec)
    if all_images:
        source = source._replace(parts=(part.with_all_images() for part in source.parts))
    shards, first = _all_shards(source, shard_size, prefix_ids), list[InputShard]()
    for shard in shards:
        first.append(shard)
        if shard.count:
            return chain(first, shards)
    tally = UnusedTally()
    tally.add(source.unused)
    for shard in first:
        tally.merge(shard.unused, shard.unused_names)
    found = f"; found {'; '.join(tally.lines())}" if tally.counts else ""
    raise UsageError(f"no images in {spec}: looked for {accepted_forms()}{found}")


def check_exists(spec: str) -> None:
    """Raises UsageError if nothing is at a local path. Lists no folder, and does not look at URLs and globs."""
    if "://" not in spec and not re.search(r"[*?[]", spec):
        FileSet.of(spec, accepted_forms)


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


def safe_shard_name(path: str, number: int, *, is_repeated: bool = False) -> str:
    """A shard's name, made from the path of its part (`SourcePart.path_in_source`) and its number in that part.

    `is_repeated`: whether the path of another part differs in upper case only, which some file systems ignore.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", path)[:100]
    if safe != path or is_repeated:
        safe += "-" + hashlib.sha256(path.encode()).hexdigest()[:8]
    return f"{safe}-{number:03d}"


def unused_file(files: FileSet, file: ListedFile) -> Unused:
    """A file that is not used, with the reason."""
    reason: UnusedReason = "other_file"
    is_read = {extension for kind in SOURCES.own().values() for extension in kind.extensions}
    if file.is_hidden:
        reason = "hidden" if extension_of(file.path) in is_read else "other_file"
    elif file.is_dead_link:
        reason = "link"
    elif file.extension in UNSUPPORTED_EXTENSIONS:
        reason = "unsupported_format"
    elif file.extension in is_read:
        reason = "other_source"
    return Unused(printable(files.relative(file.path)), reason)


def _kinds() -> Iterator[type[SourcePart]]:
    """The kinds by precedence; those of other packages are imported only when their turn comes."""
    own = SOURCES.own()
    yield from (own[name] for name in _PRECEDENCE)
    # One that cannot be imported may be the very one that is needed here: an error, not a warning.
    yield from (SOURCES.get(name) for name in SOURCES.names() if name not in _PRECEDENCE)


class Source(NamedTuple):
    """A source that is not indexed yet."""

    parts: Iterable[SourcePart]
    unused: Iterable[Unused]
    """The files that no part indexes."""

    @classmethod
    def of(cls, spec: str) -> "Source":
        """Lists a source. Raises UsageError if it cannot be listed."""
        scheme, separator, _ = spec.partition("://")
        if separator and scheme not in fsspec.available_protocols():
            for kind in _kinds():
                if scheme in kind.schemes:
                    return cls(kind.of_url(spec), iter(()))
        files = FileSet.of(spec, accepted_forms)
        first, found = next(_kinds()), set[str]()
        for file in files.files():
            found.add(file.extension)
            if file.extension in first.extensions:
                break
        kind = next((kind for kind in _kinds() if found.intersection(kind.extensions)), None)
        if kind is None:
            return cls((), (unused_file(files, file) for file in files.files()))
        return cls(kind.of_files(files), kind.unused_files(files))


def references_of(part: SourcePart, prefix_ids: bool) -> Iterator[ImageReference | Unused]:
    """The index of a part; with `prefix_ids`, an id from data is prefixed with the part's path."""
    if not prefix_ids or part.id_prefix() is not None:
        return part.index()
    prefix = f"{part.path_in_source()}/"
    return (
        item if isinstance(item, Unused) else item._replace(image_id=prefix + item.image_id) for item in part.index()
    )


def _all_shards(source: Source, shard_size: int, prefix_ids: bool) -> Iterator[InputShard]:
    unused = source.unused
    for part in source.parts:
        yield from _shards(part, shard_size, chain(unused, references_of(part, prefix_ids)))
        unused = ()


def _shards(part: SourcePart, shard_size: int, items: Iterable[ImageReference | Unused]) -> Iterator[InputShard]:
    references, tally, number = list[ImageReference](), UnusedTally(), 0
    for item in items:
        if isinstance(item, Unused):
            tally.add([item])
            continue
        if len(references) == shard_size:
            yield _shard(part, number, references, tally)
            references, tally, number = [], UnusedTally(), number + 1
        references.append(item)
    if references or tally.counts:
        yield _shard(part, number, references, tally)


def _shard(part: SourcePart, number: int, references: list[ImageReference], tally: UnusedTally) -> InputShard:
    if references:
        image_id, times = Counter(reference.image_id for reference in references).most_common(1)[0]
        if times > 1:
            raise UsageError(f"{part.identity()} has the image id {image_id!r} {times} times: ids must be unique")
    digest = hashlib.sha256()
    for value in chain([part.identity()], ((reference.image_id, reference.sizes) for reference in references)):
        digest.update(json.dumps(value).encode() + b"\n")
    return InputShard(
        part.shard_name(number),
        len(references),
        digest.hexdigest(),
        part,
        tuple(references),
        dict(sorted(tally.counts.items())),
        tally.names,
    )
