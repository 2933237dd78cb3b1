"""Manifests: small TOML files that say what an image dataset is, where it comes from and what it can be used for.

A bare list of URLs (CSV, TSV, Parquet or JSON lines with columns of URLs and captions, or a text file with one URL per
line) is also a manifest.

The table `source` of a manifest has a kind. Each kind is a subclass of `DownloadSource`, which defines the settings
of the table and the way to download. A subclass registers itself in `DOWNLOADS`. It is in a module of this package, or
of another package that names the module as an entry point of the group `dialog_gen.downloads`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar, cast, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializeAsAny,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import check_regular, name_key
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.registry import Registry
from dialog_gen.core.toml_files import explain, find_toml, read_toml_model, shipped_toml
from dialog_gen.download.http import FetchPolicy

ListFormat = Literal["tsv", "csv", "parquet", "jsonl", "txt"]
Use = Literal["images", "retrieval", "vqa", "classification"]

LIST_FORMATS: Final[Mapping[str, ListFormat]] = {
    **{f".{name}": name for name in get_args(ListFormat)},
    **{f".{name}.gz": name for name in get_args(ListFormat) if name != "parquet"},
}
"""File extension -> format."""
BARE_LIST_SPLIT: Final = "train"

T = TypeVar("T")
# TOML has lists, not tuples, so the tuple itself is not checked strictly; its items are.
NonEmpty = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]


class Strict(BaseModel):
    """Immutable settings. Unknown keys are refused, and values must have the declared type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _below(path: str) -> str:
    """Raises ValueError unless `path` is a plain relative path that stays below its folder."""
    parts = path.split("/")
    marks = "\\" in path or ":" in path or not path.isprintable()
    if not path or marks or {"", ".", ".."} & set(parts) or parts[0].startswith("."):
        raise ValueError("must be a path below the output folder, such as images/val2014")
    return path


def _http(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("must start with http:// or https://")
    return url


def _template(options: str) -> str:
    try:
        options.format(out="", split="")
    except (KeyError, IndexError, ValueError):
        raise ValueError("may hold {out} and {split}, no other braces") from None
    return options


PathBelow = Annotated[str, AfterValidator(_below)]
HttpUrl = Annotated[str, AfterValidator(_http)]


def file_name_of(url: str) -> str:
    """The name in the output folder of a file that is fetched from a URL, unless another one is given."""
    return unquote(urlsplit(url).path).rpartition("/")[2]


def check_places_differ(places: Iterable[tuple[str, str]], own_names: Iterable[str] = ()) -> None:
    """Raises ValueError if two files have the same path in the output folder, or one is in the path of the other.

    `places` are pairs of a path and the location of its file. Paths are the same if only case or normalisation differ,
    as on many file systems. `own_names` are names in the output folder that the program uses itself.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for place, location in places:
        key = name_key(place)
        if key.partition("/")[0] in own_names:
            raise ValueError(f"{location} would be stored as {place}, which this program writes itself: set its name")
        above = [str(parent) for parent in PurePosixPath(key).parents][:-1] if "/" in key else []
        other = files.get(key) or folders.get(key) or next((files[path] for path in above if path in files), None)
        if other is not None:
            raise ValueError(f"{other} and {location} would be stored in the same place, {place}")
        files[key] = location
        folders.update(dict.fromkeys(above, location))


class SourceFile(Strict):
    """A file that is fetched, is on this machine already, or must be downloaded by hand."""

    url: HttpUrl | None = None
    path: str | None = None
    """Path of a local file, relative to the manifest."""
    by_hand: Annotated[str, Field(min_length=1)] | None = None
    """Instructions for a download by hand, for a file behind a form; with a `url`, for use if the URL fails."""
    name: PathBelow | None = None
    """The file's name in the output folder. Default: the last part of `url` or `path`."""
    size_bytes: PositiveInt | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None

    @model_validator(mode="after")
    def _check_location(self) -> "SourceFile":
        if self.url and self.path:
            raise ValueError("url and path exclude each other")
        if not (self.url or self.path or self.by_hand):
            raise ValueError("where is it? Give url, path or by_hand")
        if not self.file_name:
            raise ValueError("name: what is got by hand needs one")
        _below(self.file_name)
        return self

    @property
    def file_name(self) -> str:
        """The file's name in the output folder."""
        return self.name or (file_name_of(self.url) if self.url else PurePosixPath(self.path or "").name)

    @property
    def origin(self) -> str:
        """The file's URL or local path; the name of a file to download by hand."""
        return self.url or self.path or self.file_name

    @property
    def place(self) -> str | None:
        """Path in the output folder when the file is complete; None for a file that is read where it is."""
        return None if self.path else self.file_name


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """How URLs are fetched. Only `shard_size` has an effect on the content of the output folder."""

    policy: FetchPolicy = field(default_factory=FetchPolicy)
    shard_size: int = 1024
    """URLs per tar."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    threads: int = 64
    """Simultaneous requests in each process."""
    stall_s: float | None = None
    """img2dataset is restarted if no URL was done for this many seconds. Default: twice the time that the slowest URL
    may take, but at least 300."""

    @property
    def patience_s(self) -> float:
        """`stall_s` or its default, in seconds."""
        return max(300, 2 * self.policy.longest_s) if self.stall_s is None else self.stall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """The arguments of a download: a manifest, one of its splits, the output folder and options."""

    manifest: "Manifest"
    split: str
    out: Path
    limit: int | None = None
    """The largest number of images."""
    seed: int = 0
    """Chooses the images, for a source that draws its images."""
    retry_failed: bool = False
    """Whether failed URLs are requested once more, for a source that supports it."""
    options: DownloadOptions = field(default_factory=DownloadOptions)
    on_progress: OnProgress = ignore_progress


class DownloadSummary(ABC):
    """The content of `out` after a download; `str` gives it as text for people."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The summary as JSON values."""


class DownloadSource(Strict, ABC):
    """The table `source` of a manifest. Each subclass is one kind, with its settings and its way to download."""

    draws_images: ClassVar[bool] = False
    """Whether a seed chooses the images."""
    can_retry_failed: ClassVar[bool] = False
    """Whether failed URLs can be requested again after a download is complete."""
    own_names: ClassVar[frozenset[str]] = frozenset(("download.json", "manifest.json"))
    """Names in the output folder that the download uses itself, in lower case."""

    kind: str

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that can be downloaded; the first is the default."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of known size."""
        return 0

    def with_paths_from(self, folder: Path) -> "DownloadSource":
        """A copy of the source in which paths relative to `folder` are absolute."""
        del folder
        return self

    def with_columns(self, url: str | None, caption: str | None) -> "DownloadSource":
        """A copy that reads URLs and captions from other columns of its lists; None leaves a column as it is.

        Raises UsageError for a source without such columns.
        """
        del url, caption
        raise UsageError("--url-column and --caption-column are for lists of URLs: leave them out here.")

    @abstractmethod
    def download(self, request: DownloadRequest) -> DownloadSummary:
        """Downloads into `request.out`; a second call continues an interrupted one. `request.manifest` has this source.

        Raises UsageError if `out` contains something else, FailedCheckError if something could not be fetched.
        """


DOWNLOADS: Final = Registry[type[DownloadSource]](
    "download", "dialog_gen.download", base=DownloadSource, classes=True, group="dialog_gen.downloads"
)

File = TypeVar("File", bound=SourceFile)


class FilesSource(DownloadSource, Generic[File]):
    """A source with a list of files for each split."""

    files: dict[str, NonEmpty[File]] = Field(min_length=1)
    """Split -> its files, in order. A file that belongs to several splits is fetched once."""

    @model_validator(mode="after")
    def _check_places_differ(self) -> "FilesSource[File]":
        for split, wanted in self.files.items():
            try:
                check_places_differ([(file.place, file.origin) for file in wanted if file.place], self.own_names)
            except ValueError as error:
                raise ValueError(f"files.{split}: {error}") from None
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have files."""
        return tuple(self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of known size; a file that belongs to several splits counts once."""
        sizes = {file.url: file.size_bytes or 0 for wanted in self.files.values() for file in wanted}
        return sum(sizes.values())

    def with_paths_from(self, folder: Path) -> DownloadSource:
        """A copy of the source in which file paths relative to `folder` are absolute."""
        found = {
            split: tuple(
                file.model_copy(update={"path": str((folder / file.path).absolute())}) if file.path else file
                for file in wanted
            )
            for split, wanted in self.files.items()
        }
        return self.model_copy(update={"files": found})


class Alive(Strict):
    """The fraction of a list's URLs that still gave an image, with the year and source of the measurement."""

    fraction: float = Field(gt=0, le=1)
    year: int
    source: str = Field(min_length=1)


class Manifest(Strict):
    """A dataset that `dialog-gen download` can fetch."""

    name: str
    """Default: the stem of the file name."""
    description: str = Field(min_length=1)
    homepage: str | None = None
    licence: str = Field(min_length=1)
    """An SPDX identifier, or the terms in words. Images of the web usually belong to their owners."""
    source: SerializeAsAny[DownloadSource]
    rows: dict[str, PositiveInt] = {}
    """Split -> number of images or, for a list, of URLs, if it is known."""
    alive: Alive | None = None
    columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Names of the data stored with each image."""
    becomes: dict[Use, Annotated[str, AfterValidator(_template)]] = {}
    """Use of the download -> the options of `dialog-gen run`, or of `dialog-eval retrieval`, `vqa` or `classify`, that
    read it. {out} and {split} are replaced by those of the download."""

    @field_validator("source", mode="before")
    @classmethod
    def _validate_by_kind(cls, value: Any) -> Any:
        if isinstance(value, DownloadSource):
            return value
        if not isinstance(value, dict):
            raise ValueError("a table is needed")
        table = cast("dict[str, Any]", value)
        kind = table.get("kind")
        if kind is None:
            raise ValueError(f"the key 'kind' is missing, got {', '.join(table) or 'nothing'}")
        if kind not in DOWNLOADS.names():
            raise ValueError(f"unknown kind {kind!r}; {did_you_mean(str(kind), DOWNLOADS.names())}")
        model = DOWNLOADS.get(kind)
        try:
            return model.model_validate(table)
        except ValidationError as error:
            raise ValueError(explain(error, model)) from None

    @model_validator(mode="after")
    def _check_rows(self) -> "Manifest":
        for split in self.rows:
            if split not in self.splits:
                raise ValueError(f"rows.{split}: the source has no such split: {did_you_mean(split, self.splits)}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that can be downloaded."""
        return self.source.splits

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of known size."""
        return self.source.size_bytes

    def uses(self, out: Path, split: str) -> dict[Use, str]:
        """`becomes` with the folder and split of a download filled in."""
        return {use: options.format(out=quote(str(out)), split=split) for use, options in self.becomes.items()}


def of_split(by_split: Mapping[str, T], split: str) -> T:
    """The value for a split. Raises UsageError for an unknown split."""
    if split not in by_split:
        raise UsageError(f"there is no split {split!r}: {did_you_mean(split, by_split)}.")
    return by_split[split]


def shipped_manifests() -> dict[str, Path]:
    """Name -> path of each manifest that comes with the package."""
    in_repository = Path(__file__).parents[3] / "data_manifests"
    return shipped_toml(Path(str(files("dialog_gen"))) / "data_manifests", in_repository)


def load_manifest(name_or_file: str) -> Manifest:
    """Loads a shipped manifest by name or a TOML file by path, or makes a manifest of a bare list of URLs.

    Raises UsageError for an unknown name, an unreadable file, or a file that is not a manifest.
    """
    if name_or_file not in shipped_manifests() and (list_format := _list_format(name_or_file)):
        return _of_list(Path(name_or_file), list_format)
    try:
        path = find_toml(name_or_file, shipped_manifests(), "manifest")
    except UsageError as error:
        raise UsageError(f"{str(error).removesuffix('.')}, or a list of URLs ({', '.join(LIST_FORMATS)}).") from None
    manifest = read_toml_model(path, Manifest, "manifest")
    return manifest.model_copy(update={"source": manifest.source.with_paths_from(path.parent)})


def _list_format(name: str) -> ListFormat | None:
    return next((found for ending, found in LIST_FORMATS.items() if name.lower().endswith(ending)), None)


def _of_list(path: Path, list_format: ListFormat) -> Manifest:
    try:
        check_regular(path)
    except OSError as error:
        raise UsageError(f"list of URLs {path}: {error.strerror}.") from None
    lists = {BARE_LIST_SPLIT: [{"path": str(path.absolute())}]}
    return Manifest.model_validate(
        {
            "name": path.name.split(".")[0] or path.name,
            "description": f"The URLs in {path.name}",
            "licence": "that of each image",
            "source": {"kind": "urls", "format": list_format, "files": lists},
            "columns": ("url",) if list_format == "txt" else ("url", "caption"),
            "becomes": {"images": "--images {out}/images"},
        }
    )
