"""Manifests: small TOML files that say what a dataset of images is, where it comes from and what it can be used for.

A bare list of URLs (CSV, TSV, Parquet or JSON lines with the columns `url` and `caption`) is a manifest, too.

The table `source` of a manifest names its kind. A kind is a subclass of `DownloadSource`: the settings that the table
may hold, and the function that downloads. It registers itself in `DOWNLOADS`, in a module of this package or of another
one that names it among its entry points `dialog_gen.downloads`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
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
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.registry import Registry
from dialog_gen.core.toml_files import explain, find_toml, read_toml_model
from dialog_gen.download.http import FetchPolicy

ListFormat = Literal["tsv", "csv", "parquet", "jsonl"]
Use = Literal["images", "retrieval", "vqa", "classification"]

LIST_FORMATS: Final[Mapping[str, ListFormat]] = {
    **{f".{name}": name for name in get_args(ListFormat)},
    **{f".{name}.gz": name for name in get_args(ListFormat) if name != "parquet"},
}
"""File extension -> format."""
BARE_LIST_SPLIT: Final = "train"

T = TypeVar("T")
# Arrays of TOML are lists; their items are checked as strictly as the rest.
NonEmpty = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]


class Strict(BaseModel):
    """Immutable settings without unknown keys; values must have the declared type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _below(path: str) -> str:
    """Refuses what is not a plain path below a folder."""
    parts = path.split("/")
    if not path or "\\" in path or ":" in path or {"", ".", ".."} & set(parts) or parts[0].startswith("."):
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


class SourceFile(Strict):
    """A file that is fetched, lies on this machine already, or must be got by hand."""

    url: HttpUrl | None = None
    path: str | None = None
    """A user's own file, relative to the manifest."""
    by_hand: Annotated[str, Field(min_length=1)] | None = None
    """What to download and how, for a file behind a form; with a `url`, for when that gives nothing."""
    name: PathBelow | None = None
    """Its name in the output folder. Default: the last part of `url` or `path`."""
    size_bytes: PositiveInt | None = None
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")] | None = None
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")] | None = None

    @model_validator(mode="after")
    def _is_somewhere(self) -> "SourceFile":
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
        return self.name or PurePosixPath(unquote(urlsplit(self.url).path) if self.url else self.path or "").name


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """How URLs are fetched; only `shard_size` shapes the output folder."""

    policy: FetchPolicy = field(default_factory=FetchPolicy)
    shard_size: int = 1024
    """URLs a tar."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    threads: int = 64
    """Requests under way at a time, in each process."""
    stall_s: float | None = None
    """img2dataset is restarted if no URL was done for this long. Default: twice what the slowest URL may take, but at
    least 300."""

    @property
    def patience_s(self) -> float:
        """`stall_s` or its default."""
        return max(300, 2 * self.policy.longest_s) if self.stall_s is None else self.stall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """What is asked of a kind of source: a manifest of that kind, one of its splits, and a folder."""

    manifest: "Manifest"
    split: str
    out: Path
    limit: int | None = None
    """At most this many images."""
    seed: int = 0
    """Which images are drawn, for a source that draws its images."""
    retry_failed: bool = False
    """Request failed URLs once more, for a source that can."""
    options: DownloadOptions = field(default_factory=DownloadOptions)
    on_progress: OnProgress = ignore_progress


class DownloadSummary(ABC):
    """What lies in `out` after a download; `str` gives the text for people."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All of it, for a program."""


class DownloadSource(Strict, ABC):
    """The table `source` of a manifest. A subclass is a kind: its settings, and how it downloads."""

    draws_images: ClassVar[bool] = False
    """Whether a seed chooses the images."""
    can_retry_failed: ClassVar[bool] = False
    """Whether failed URLs can be requested again after a download is complete."""

    kind: str

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that can be downloaded; the first is the default."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together, as far as they are known."""
        return 0

    def with_paths_from(self, folder: Path) -> "DownloadSource":
        """The same source with relative paths taken from `folder`."""
        del folder
        return self

    @abstractmethod
    def download(self, request: DownloadRequest) -> DownloadSummary:
        """Downloads into `request.out`; a second call continues an interrupted one. `request.manifest` has this source.

        Raises UsageError where `out` holds something else, FailedCheckError where something could not be fetched.
        """


DOWNLOADS: Final = Registry[type[DownloadSource]](
    "download", "dialog_gen.download", base=DownloadSource, classes=True, group="dialog_gen.downloads"
)

File = TypeVar("File", bound=SourceFile)


class FilesSource(DownloadSource, Generic[File]):
    """A source that consists of files for each split."""

    files: dict[str, NonEmpty[File]] = Field(min_length=1)
    """Split -> its files, in order. A file of several splits is fetched once."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that have files."""
        return tuple(self.files)

    @property
    def size_bytes(self) -> int:
        """A file of several splits counts once."""
        sizes = {file.url: file.size_bytes or 0 for wanted in self.files.values() for file in wanted}
        return sum(sizes.values())

    def with_paths_from(self, folder: Path) -> DownloadSource:
        """The same source with the paths of its files taken from `folder`."""
        found = {
            split: tuple(
                file.model_copy(update={"path": str((folder / file.path).absolute())}) if file.path else file
                for file in wanted
            )
            for split, wanted in self.files.items()
        }
        return self.model_copy(update={"files": found})


class Alive(Strict):
    """The fraction of a list's URLs that still gave an image, and who measured it when."""

    fraction: float = Field(gt=0, le=1)
    year: int
    source: str = Field(min_length=1)


class Manifest(Strict):
    """A dataset that `dialog-gen download` can fetch."""

    name: str
    """The file's stem where the file gives none."""
    description: str = Field(min_length=1)
    homepage: str | None = None
    licence: str = Field(min_length=1)
    """An SPDX identifier, or the terms in words; images mostly belong to their owners."""
    source: SerializeAsAny[DownloadSource]
    rows: dict[str, PositiveInt] = {}
    """Split -> images or, for a list, URLs; where that is known."""
    alive: Alive | None = None
    columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What is stored beside each image."""
    becomes: dict[Use, Annotated[str, AfterValidator(_template)]] = {}
    """What the download can be used for -> the options of `dialog-gen run`, or of `dialog-eval retrieval`, `vqa` or
    `classify`, that read it; {out} and {split} stand for the download's."""

    @field_validator("source", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> Any:
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
    def _rows_are_of_splits(self) -> "Manifest":
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
        """Bytes of all files together, as far as they are known."""
        return self.source.size_bytes

    def uses(self, out: Path, split: str) -> dict[Use, str]:
        """`becomes` with the download's own paths."""
        return {use: options.format(out=quote(str(out)), split=split) for use, options in self.becomes.items()}


def of_split(by_split: Mapping[str, T], split: str) -> T:
    """The entry of a split. Raises UsageError for a split that is not there."""
    if split not in by_split:
        raise UsageError(f"there is no split {split!r}: {did_you_mean(split, by_split)}.")
    return by_split[split]


def shipped_manifests() -> dict[str, Path]:
    """Name -> file of the manifests that come with the package."""
    folder = Path(str(files("dialog_gen"))) / "data_manifests"
    if not folder.is_dir():
        # An editable install: only a wheel holds them inside the package.
        folder = Path(__file__).parents[3] / "data_manifests"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def load_manifest(name_or_file: str) -> Manifest:
    """A shipped manifest by name, a user's by the path of its TOML file, or one made of a bare list of URLs.

    Raises UsageError for an unknown name, an unreadable file, or contents that are not a manifest.
    """
    if name_or_file not in shipped_manifests() and (list_format := _list_format(name_or_file)):
        return _of_list(Path(name_or_file), list_format)
    path = find_toml(name_or_file, shipped_manifests(), "manifest")
    manifest = read_toml_model(path, Manifest, "manifest")
    return manifest.model_copy(update={"source": manifest.source.with_paths_from(path.parent)})


def _list_format(name: str) -> ListFormat | None:
    return next((of for ending, of in LIST_FORMATS.items() if name.lower().endswith(ending)), None)


def _of_list(path: Path, list_format: ListFormat) -> Manifest:
    if not path.is_file():
        raise UsageError(f"list of URLs {path}: no such file.")
    lists = {BARE_LIST_SPLIT: [{"path": str(path.absolute())}]}
    return Manifest.model_validate(
        {
            "name": path.name.split(".")[0] or path.name,
            "description": f"The URLs in {path.name}",
            "licence": "that of each image",
            "source": {"kind": "urls", "format": list_format, "files": lists},
            "columns": ("url", "caption"),
            "becomes": {"images": "--images {out}/images"},
        }
    )
