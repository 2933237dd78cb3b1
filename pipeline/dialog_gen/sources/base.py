"""Where images come from: webdataset tars, image files or Parquet, in a folder, a glob, a file or an fsspec URL.

A source is cut into shards that can be read on their own. A shard holds references, never image bytes: memory grows
with the largest directory and the largest tar, not with the source.

Links are followed, those to a folder once: not if it is read under a path of its own anyway, or was read before.
"""

import hashlib
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count, groupby, islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from dialog_gen.core.errors import UsageError
from dialog_gen.core.parquet import open_parquet
from dialog_gen.sources.images import IMAGE_EXTENSIONS

IMAGE_COLUMNS: Final = ("image", "images", "jpg", "jpeg", "png", "webp", "bytes")
ID_COLUMNS: Final = ("image_id", "key", "id", "__key__")
CAPTION_COLUMNS: Final = ("caption", "text", "txt")

_ACCEPTED = (
    f"*.tar (webdataset), image files ({', '.join(IMAGE_EXTENSIONS)}) or *.parquet; in a folder, a glob or a URL"
)
_ROWS_AT_ONCE = 16  # of Parquet, so that a batch of images stays small
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image as stored, and what its source says of it; `path` is its file name."""

    image_id: str
    data: bytes
    path: str | None = None
    url: str | None = None
    caption: str | None = None
    source_sha256: str | None = None
    """Of what `url` served, where the source says so."""


class _Item(NamedTuple):
    """Refers to one image and, where they exist, its caption and metadata: `sizes` and `places` follow that order."""

    image_id: str
    name: str = ""
    sizes: tuple[int | None, ...] = ()
    places: tuple[int, ...] = ()


class _Origin(Protocol):
    """A run of images that shards are cut from."""

    @property
    def shard_name(self) -> str: ...  # with a place for the shard's number
    def identity(self) -> object: ...
    def index(self) -> Iterator[_Item]: ...
    def read(self, items: tuple[_Item, ...]) -> Iterator[SourceImage]: ...


@dataclass(frozen=True, slots=True)
class InputShard:
    """The unit of work; `name` is unique in its source, stable, and fit for a file name.

    `fingerprint` covers the address of the input and the id and byte size of each image and of what is said of it. For
    Parquet it is the ids and the size of the file. Times of modification do not count. It is that of the whole shard
    where only its `head` is to be read, so that a limit does not make the input look changed.
    """

    name: str
    count: int
    fingerprint: str
    _origin: _Origin = field(repr=False)
    _items: tuple[_Item, ...] = field(repr=False)

    def image_ids(self) -> list[str]:
        """The images' ids, in order; reads nothing."""
        return [item.image_id for item in self._items]

    def read(self) -> Iterator[SourceImage]:
        """The images, in order. Raises `UsageError` if a file is gone, unreadable or no longer what was indexed."""
        return self._origin.read(self._items)

    def head(self, count: int) -> "InputShard":
        """The first `count` images, name and fingerprint unchanged. Raises `ValueError` if `count` is negative."""
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        return self if count >= self.count else replace(self, count=count, _items=self._items[:count])


def _shard(name: str, origin: _Origin, items: tuple[_Item, ...]) -> InputShard:
    digest = hashlib.sha256()
    for fact in chain([origin.identity()], ((item.image_id, item.sizes) for item in items)):
        digest.update(json.dumps(fact).encode() + b"\n")
    return InputShard(name, len(items), digest.hexdigest(), origin, items)


def _cut(origin: _Origin, shard_size: int) -> Iterator[InputShard]:
    index = origin.index()
    for number in count():
        items = tuple(islice(index, shard_size))
        if not items:
            return
        image_id, times = Counter(item.image_id for item in items).most_common(1)[0]
        if times > 1:
            raise UsageError(f"{origin.identity()} has the image id {image_id!r} {times} times: ids must be unique")
        yield _shard(origin.shard_name.format(number), origin, items)


def open_source(spec: str, *, shard_size: int) -> Iterator[InputShard]:
    """Cut the images at `spec` into shards of up to `shard_size`, in a stable order.

    Tars if there are any, else image files, else Parquet files. Raises `UsageError` if nothing usable is there, or
    for a file, when its turn comes, that is damaged, unfinished or has an id twice; `ValueError` for a wrong size.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be 1 or more, got {shard_size}")
    source = _Source.of(spec)
    kinds = set[str]()
    for file in source.files():
        kinds.add(file.kind)
        if file.kind == "tar":
            break
    if "tar" in kinds:
        origins: Iterable[_Origin] = (_Tar.of(source, file) for file in source.files() if file.kind == "tar")
    elif "image" in kinds:
        origins = [_ImageFiles(source)]
    else:
        origins = (_Parquet.of(source, file) for file in source.files() if file.kind == "parquet")
    shards = (shard for origin in origins for shard in _cut(origin, shard_size))
    first = next(shards, None)
    if first is None:
        raise UsageError(f"no images in {spec}: looked for {_ACCEPTED}")
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


class _Folder:
    """The listing of one directory."""

    def __init__(self, fs: Any, path: str) -> None:
        with _readable(path):
            # Object stores may list a directory in itself.
            entries = [entry for entry in fs.ls(path, detail=True) if entry["name"].rstrip("/") != path.rstrip("/")]
            self.sizes = {_name(entry["name"]): int(entry["size"] or 0) for entry in entries if _is_file(fs, entry)}
        self.folders = {_name(entry["name"]): False for entry in entries if entry["type"] == "directory"}
        """Name -> whether it is a link."""
        self.folders |= {_name(e["name"]): True for e in entries if e.get("islink", False) and fs.isdir(e["name"])}
        stats = (name.removesuffix("_stats.json") for name in self.sizes if name.endswith("_stats.json"))
        self.has_stats = any(f"{tar}.tar" in self.sizes for tar in stats)


def _is_file(fs: Any, entry: dict[str, Any]) -> bool:
    return entry["type"] == "file" or (entry.get("islink", False) and fs.isfile(entry["name"]))


class _File(NamedTuple):
    path: str
    folder: _Folder

    @property
    def kind(self) -> str:
        extension = _extension(self.path)
        return "image" if extension in IMAGE_EXTENSIONS else extension

    @property
    def size(self) -> int:
        return self.folder.sizes[_name(self.path)]

    def size_of(self, ending: str) -> int | None:
        """The size of the file beside this one that has another ending."""
        return self.folder.sizes.get(_stem(_name(self.path)) + ending)


@dataclass(frozen=True, slots=True)
class _Source:
    """The files that a spec stands for: those `chosen`, else all below `root`."""

    fs: Any
    root: str
    chosen: tuple[str, ...] | None = None

    @classmethod
    def of(cls, spec: str) -> "_Source":
        try:
            # A file system that keeps its listings grows with the source and does not see new files.
            fs, path = url_to_fs(spec, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(f"cannot open {spec}: {error}") from error
        try:
            with _readable(spec):
                if spec and fs.isdir(path):
                    return cls(fs, path.rstrip("/"))
                if spec and fs.exists(path):
                    return cls(fs, _parent(path), (path,))
                wildcard = re.search(r"[*?[]", path)
                entries = fs.glob(path, detail=True) if wildcard else {}
                found = sorted(p for p, e in entries.items() if _is_file(fs, e) and not _name(p).startswith("."))
        except UsageError:
            raise
        except Exception as error:  # each file system has its own for a wrong address, credentials or no network
            raise UsageError(f"cannot read {spec} ({type(error).__name__}: {error}): check the address") from error
        if not wildcard or not found:
            raise UsageError(f"{'no file matches' if wildcard else 'nothing is at'} {spec!r}: expected {_ACCEPTED}")
        return cls(fs, _parent(path[: wildcard.start()]), tuple(found))

    def files(self) -> Iterator[_File]:
        """In order of path."""
        if self.chosen is None:
            yield from self._below(self.root, linked=False, seen=set())
            return
        for parent, paths in groupby(self.chosen, _parent):
            folder = _Folder(self.fs, parent or "/")
            yield from (_File(path, folder) for path in paths)

    def _below(self, path: str, *, linked: bool, seen: set[str]) -> Iterator[_File]:
        """`linked`: whether the path leads through a link; `seen` has the true paths of the folders that were so."""
        if linked:
            true = os.path.realpath(path)
            if true in seen or self._has(true):
                return
            seen.add(true)
        folder = _Folder(self.fs, path or "/")
        # The slash puts a directory where the paths of its files sort.
        for name in sorted(chain(folder.sizes, (name + "/" for name in folder.folders))):
            if name.startswith("."):
                continue
            if name.endswith("/"):
                is_link = folder.folders[name[:-1]]
                yield from self._below(f"{path}/{name[:-1]}", linked=linked or is_link, seen=seen)
            else:
                yield _File(f"{path}/{name}", folder)

    def _has(self, true: str) -> bool:
        """Whether a folder of this true path is reached without links."""
        root, folder = os.path.realpath(self.root or "/"), Path(true)
        if not folder.is_relative_to(root):
            return False
        return not any(name.startswith(".") for name in folder.relative_to(root).parts)

    def relative(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")

    def url(self, path: str) -> str:
        return _text(self.fs.unstrip_protocol(path))

    @contextmanager
    def open(self, path: str) -> Generator[Any]:
        with _readable(path), self.fs.open(path, "rb") as file:
            yield file


@dataclass(frozen=True, slots=True)
class _Tar:
    source: _Source
    path: str
    shard_name: str

    @classmethod
    def of(cls, source: _Source, file: _File) -> "_Tar":
        # img2dataset writes the statistics of a tar when the tar is complete.
        if file.folder.has_stats and file.size_of("_stats.json") is None:
            raise UsageError(f"{file.path} is not complete: it has no _stats.json yet. Finish the download first")
        return cls(source, file.path, _shard_name(source.relative(file.path)))

    def identity(self) -> str:
        return self.source.url(self.path)

    def index(self) -> Iterator[_Item]:
        """The samples in order of the tar, by webdataset's rule: a key is the path up to the first dot of its name."""
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with self.source.open(self.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    key, _, ending = name.partition(".")
                    # What is sparse does not lie in one piece.
                    if not key or not member.isreg() or member.issparse():
                        continue
                    kind = _extension(ending)
                    if kind not in (*IMAGE_EXTENSIONS, "txt", "json"):
                        continue
                    sample = samples.setdefault(folder + slash + key, {})
                    if any(_name(member.name) == _name(other.name) for other in sample.values()):
                        raise UsageError(
                            f"{self.path} has {folder + slash + key!r} twice: keys must be unique in a tar"
                        )
                    sample.setdefault("image" if kind in IMAGE_EXTENSIONS else kind, member)
                # tarfile takes a cut or damaged header for the end of the tar. The true end is a block of zeros.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no end mark")
        except (tarfile.TarError, ValueError) as error:
            raise UsageError(f"{self.path} is damaged or cut short ({error}): download it again") from error
        prefix = _stem(self.source.relative(self.path))
        without = [key for key, sample in samples.items() if "image" not in sample]
        if without:
            _log.warning("%s: %d samples have no image and are skipped, %r first", self.path, len(without), without[0])
        for key, sample in samples.items():
            if "image" in sample:
                members = [sample.get(kind) for kind in ("image", "txt", "json")]
                sizes = tuple(member and member.size for member in members)
                places = tuple(member.offset_data if member else 0 for member in members)
                yield _Item(_text(f"{prefix}/{key}"), _text(_name(sample["image"].name)), sizes, places)

    def read(self, items: tuple[_Item, ...]) -> Iterator[SourceImage]:
        with self.source.open(self.path) as file:
            for item in items:
                parts: list[bytes | None] = []
                for size, place in zip(item.sizes, item.places, strict=True):
                    file.seek(place)
                    parts.append(None if size is None else file.read(size))
                    if size is not None and len(parts[-1] or b"") < size:
                        raise UsageError(f"{self.path} was cut short since it was indexed: download it again")
                image, caption, metadata = parts
                about = _metadata(metadata or b"{}", item.image_id)
                caption = about.get("caption") if caption is None else _caption(caption)
                # img2dataset's hash is that of the bytes it fetched, before it resized and encoded them anew.
                sha256 = about.get("sha256")
                yield SourceImage(item.image_id, image or b"", item.name, about.get("url"), caption, sha256)


@dataclass(frozen=True, slots=True)
class _ImageFiles:
    source: _Source
    shard_name: str = "images-{:06d}"

    def identity(self) -> str:
        return self.source.url(self.source.root)

    def index(self) -> Iterator[_Item]:
        for file in self.source.files():
            if file.kind == "image":
                name = self.source.relative(file.path)
                yield _Item(_text(name), name, (file.size, file.size_of(".txt")))

    def read(self, items: tuple[_Item, ...]) -> Iterator[SourceImage]:
        for item in items:
            path = f"{self.source.root}/{item.name}"
            caption = None if item.sizes[1] is None else _caption(self._content(_stem(path) + ".txt"))
            yield SourceImage(item.image_id, self._content(path), _name(item.image_id), caption=caption)

    def _content(self, path: str) -> bytes:
        with self.source.open(path) as file:
            return file.read()


@dataclass(frozen=True, slots=True)
class _Parquet:
    source: _Source
    path: str
    shard_name: str
    size: int
    image: str
    image_id: str | None
    url: str | None
    caption: str | None

    @classmethod
    def of(cls, source: _Source, file: _File) -> "_Parquet":
        with _open_parquet(source, file.path) as parquet:
            schema = parquet.schema_arrow
        images = [column.name for column in schema if _holds_image(column.type)]
        image = next((name for name in IMAGE_COLUMNS if name in images), images[0] if len(images) == 1 else None)
        if image is None:
            columns = ", ".join(f"{column.name}: {column.type}" for column in schema)
            raise UsageError(
                f"{file.path}: which column has the images? Expected bytes or struct{{bytes, path}}, the only such "
                f"column or one named {', '.join(IMAGE_COLUMNS)}; got {columns}"
            )

        def first(*names: str) -> str | None:
            return next((name for name in names if name in schema.names and name != image), None)

        name = _shard_name(source.relative(file.path))
        return cls(source, file.path, name, file.size, image, first(*ID_COLUMNS), first("url"), first(*CAPTION_COLUMNS))

    def identity(self) -> object:
        return self.source.url(self.path), self.size

    def index(self) -> Iterator[_Item]:
        with _open_parquet(self.source, self.path) as parquet:
            if self.image_id is None:
                stem = _text(_stem(self.source.relative(self.path)))
                yield from (_Item(f"{stem}/{row}", places=(row,)) for row in range(parquet.metadata.num_rows))
                return
            ids = (i for batch in parquet.iter_batches(columns=[self.image_id]) for i in batch.column(0).to_pylist())
            for row, image_id in enumerate(ids):
                if image_id is None:
                    raise UsageError(f"{self.path}: {self.image_id} is null in row {row}; every image needs an id")
                yield _Item(str(image_id), places=(row,))

    def read(self, items: tuple[_Item, ...]) -> Iterator[SourceImage]:
        if not items:
            return
        columns = [name for name in (self.image, self.url, self.caption) if name]
        start, stop = items[0].places[0], items[-1].places[0] + 1
        with _open_parquet(self.source, self.path) as parquet:
            groups, skip, begin = list[int](), 0, 0
            for group in range(parquet.num_row_groups):
                end = begin + parquet.metadata.row_group(group).num_rows
                if begin < stop and end > start:
                    skip = skip if groups else start - begin
                    groups.append(group)
                begin = end
            batches = parquet.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=columns)
            for item, row in zip(items, _rows(batches, skip), strict=False):
                data, path = _image_of(row[self.image])
                texts = (row.get(name or "") for name in (self.url, self.caption))
                yield SourceImage(item.image_id, data, path, *(t if isinstance(t, str) else None for t in texts))


@contextmanager
def _open_parquet(source: _Source, path: str) -> Generator[pq.ParquetFile]:
    with source.open(path) as file:
        try:
            yield open_parquet(file)
        except (pa.ArrowException, OSError) as error:
            # Arrow's own complaints about content have no errno.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UsageError(f"{path} is damaged or no Parquet ({error}): download it again") from error


def _rows(batches: Iterable[pa.RecordBatch], skip: int) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.slice(min(skip, batch.num_rows)).to_pylist()
        skip = max(0, skip - batch.num_rows)


def _holds_image(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _image_of(cell: Any) -> tuple[bytes, str | None]:
    """Bytes and file name; a row without an image has no bytes."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        path = cell.get("path")
        return cell["bytes"] or b"", _name(path) if path else None
    return cell or b"", None


def _metadata(data: bytes, image_id: str) -> dict[str, str]:
    try:
        parsed: Any = json.loads(data)
    except (ValueError, RecursionError):
        _log.warning("%s: its .json cannot be read and is ignored", image_id)
        return {}
    if not isinstance(parsed, dict):
        return {}
    # JSON may spell half a character ("\\ud83d"), which cannot be written again.
    texts = {key: value for key, value in parsed.items() if isinstance(value, str)}
    return {key: value.encode("utf-8", "replace").decode() for key, value in texts.items()}


def _caption(data: bytes) -> str | None:
    return data.decode("utf-8", "replace").strip() or None


@contextmanager
def _readable(path: str) -> Generator[None]:
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"no permission to read {path}: {error}") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} is gone: {error}. Did the input change during the run?") from error


def _shard_name(relative: str) -> str:
    stem = _text(_stem(relative))
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", stem)[:100]
    if safe != stem:
        safe += "-" + hashlib.sha256(stem.encode()).hexdigest()[:8]
    return safe + "-{:03d}"


def _text(name: str) -> str:
    """A name that was no UTF-8 as text that can be written, distinct from all others."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _stem(path: str) -> str:
    return path[: path.rindex(".")]


def _extension(path: str) -> str:
    return _name(path).rpartition(".")[2].lower()
