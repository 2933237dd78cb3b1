"""Where images come from: each kind of source registers itself in `SOURCES`, and shards are cut from what it lists.

A source is cut into shards that can be read on their own. A shard holds references, never image bytes: memory grows
with the largest directory and the largest tar, not with the source.

A kind is a subclass of `SourcePart`, in a module of this package or of another one that names it among its entry points
`dialog_gen.sources`. It takes files by their extensions, or URLs by their scheme:

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
"""Which kind is read where files of several lie together; all others come after these, in the registry's order."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image as stored, and what its source says of it; `path` is its file name."""

    image_id: str
    data: bytes
    path: str | None = None
    url: str | None = None
    caption: str | None = None
    source_sha256: str | None = None
    """Of the bytes that `url` served, where the source says so."""


class ImageReference(NamedTuple):
    """Where one image of a `SourcePart` lies; only `image_id` has the same meaning for all kinds.

    `sizes` are the bytes of the image and of what is said of it, None for what is missing; the fingerprint covers them.
    `places` tell the kind where each of these begins.
    """

    image_id: str
    name: str = ""
    sizes: tuple[int | None, ...] = ()
    places: tuple[int, ...] = ()


class SourcePart(ABC):
    """The images that shards are cut from: a tar, a Parquet file, all image files of a folder. A subclass is a kind."""

    accepted: ClassVar[str]
    """What is accepted, for help and errors: "*.parquet"."""
    extensions: ClassVar[tuple[str, ...]] = ()
    """Extensions of the files that the kind reads, in lower case and without the dot."""
    schemes: ClassVar[tuple[str, ...]] = ()
    """Schemes of the URLs that the kind reads by itself; fsspec's own cannot be taken."""

    @classmethod
    def of_files(cls, files: FileSet) -> Iterable["SourcePart"]:
        """The parts of a source that has files with these extensions, in a stable order."""
        raise NotImplementedError(f"{cls.__name__} has extensions but no of_files")

    @classmethod
    def of_url(cls, url: str) -> Iterable["SourcePart"]:
        """The parts of a source at a URL with one of these schemes, in a stable order."""
        raise NotImplementedError(f"{cls.__name__} has schemes but no of_url")

    @abstractmethod
    def identity(self) -> object:
        """What tells this part from others and is the same every time, such as its URL; as JSON values."""

    @abstractmethod
    def shard_name(self, number: int) -> str:
        """The name of its shard of that number, from 0 on: unique in the source, fit for a file name."""

    @abstractmethod
    def index(self) -> Iterator[ImageReference]:
        """All images, in a stable order. Raises UsageError where the part is damaged or not complete."""

    @abstractmethod
    def read(self, references: tuple[ImageReference, ...]) -> Iterator[SourceImage]:
        """Images that `index` listed, one after the other, in that order.

        Raises UsageError where something is gone, unreadable or no longer what was indexed.
        """


SOURCES: Final = Registry[type[SourcePart]]("image source", "dialog_gen.sources", base=SourcePart, classes=True)


@dataclass(frozen=True, slots=True)
class InputShard:
    """The unit of work; `name` is unique in its source, stable, and fit for a file name.

    `fingerprint` covers the address of the input and the id and byte size of each image and of what is said of it. For
    Parquet it covers the ids and the size of the file. Times of modification do not count. It is the fingerprint of the
    whole shard even where only its `head` is to be read, so that a limit does not make the input look changed.
    """

    name: str
    count: int
    fingerprint: str
    _part: SourcePart = field(repr=False)
    _references: tuple[ImageReference, ...] = field(repr=False)

    def image_ids(self) -> list[str]:
        """The images' ids, in order; reads nothing."""
        return [reference.image_id for reference in self._references]

    def read(self) -> Iterator[SourceImage]:
        """The images, in order. Raises `UsageError` if a file is gone, unreadable or no longer what was indexed."""
        return self._part.read(self._references)

    def head(self, count: int) -> "InputShard":
        """The first `count` images, name and fingerprint unchanged. Raises `ValueError` if `count` is negative."""
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        return self if count >= self.count else replace(self, count=count, _references=self._references[:count])


def open_source(spec: str, *, shard_size: int) -> Iterator[InputShard]:
    """Cut the images at `spec` into shards of up to `shard_size`, in a stable order.

    One kind is read: tars if there are any, else image files, else Parquet files, else what another package's kind
    takes. Raises `UsageError` if nothing usable is there, or for a file, when its turn comes, that is damaged,
    unfinished or has an id twice; `ValueError` for a wrong size.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be 1 or more, got {shard_size}")
    shards = (shard for part in _parts(spec) for shard in _cut(part, shard_size))
    first = next(shards, None)
    if first is None:
        raise UsageError(f"no images in {spec}: looked for {accepted_forms()}")
    return chain([first], shards)


def with_limit(shards: Iterable[InputShard], limit: int | None) -> Iterator[InputShard]:
    """The shards up to `limit` images in all, the last cut to fit. Raises `ValueError` if `limit` is negative."""
    if limit is None:
        yield from shards
        return
    if limit < 0:
        raise ValueError(f"limit must be 0 or more, got {limit}")
    remaining = iter(shards)
    # Asks for no shard beyond the last: to index one can take long.
    while limit and (shard := next(remaining, None)):
        yield shard.head(limit)
        limit -= min(limit, shard.count)


def accepted_forms() -> str:
    """What every kind of source accepts, for help and errors."""
    *forms, last = (kind.accepted for kind in _kinds())
    return f"{', '.join(forms)} or {last}; in a folder, a glob or a URL"


def safe_shard_name(relative: str, number: int) -> str:
    """A shard's name made of the path of the file that it is cut from, and its number in that file."""
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


def _cut(part: SourcePart, shard_size: int) -> Iterator[InputShard]:
    index = part.index()
    for number in count():
        references = tuple(islice(index, shard_size))
        if not references:
            return
        image_id, times = Counter(reference.image_id for reference in references).most_common(1)[0]
        if times > 1:
            raise UsageError(f"{part.identity()} has the image id {image_id!r} {times} times: ids must be unique")
        digest = hashlib.sha256()
        for fact in chain([part.identity()], ((reference.image_id, reference.sizes) for reference in references)):
            digest.update(json.dumps(fact).encode() + b"\n")
        yield InputShard(part.shard_name(number), len(references), digest.hexdigest(), part, references)
