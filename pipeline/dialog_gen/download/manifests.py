"""Manifests: what a dataset of images is, where it comes from and what it becomes, as small TOML files.

A bare list of URLs (CSV, TSV, Parquet or JSON lines with the columns `url` and `caption`) is a manifest, too.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from itertools import combinations, product
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Annotated, Literal, TypeVar, get_args
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, model_validator

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.toml_files import find_toml, read_toml_model
from dialog_gen.shapes.scenes import Split

ListFormat = Literal["tsv", "csv", "parquet", "jsonl"]
Use = Literal["images", "retrieval", "vqa", "classification"]

LIST_FORMATS: Mapping[str, ListFormat] = {
    **{f".{name}": name for name in get_args(ListFormat)},
    **{f".{name}.gz": name for name in get_args(ListFormat) if name != "parquet"},
}
"""File extension -> format."""
ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tar.gz", ".tgz")
BARE_LIST_SPLIT = "train"

_T = TypeVar("_T")

# Arrays of TOML are lists; what is in them is checked as strictly as the rest.
_Several = Annotated[tuple[_T, ...], Field(strict=False, min_length=1)]
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class _Strict(BaseModel):
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


_Below = Annotated[str, AfterValidator(_below)]
_Url = Annotated[str, AfterValidator(_http)]


class SourceFile(_Strict):
    """A file that is fetched, lies on this machine already, or must be got by hand."""

    url: _Url | None = None
    path: str | None = None
    """A user's own file, relative to the manifest."""
    by_hand: Annotated[str, Field(min_length=1)] | None = None
    """What to download and how, for what lies behind a form; with a `url`, for when that gives nothing."""
    name: _Below | None = None
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
        """What the file is called in the output folder."""
        return self.name or PurePosixPath(unquote(urlsplit(self.url).path) if self.url else self.path or "").name


class ArchiveFile(SourceFile):
    """A zip or tar, which is unpacked, or any other file, which is kept as it is."""

    into: _Below
    """The folder of the output folder that an archive becomes, or that another file is put into. An archive that
    holds nothing but a folder of the same name becomes that folder."""

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked."""
        return self.file_name.lower().endswith(ARCHIVE_EXTENSIONS)

    @property
    def place(self) -> str:
        """What is there in the output folder when it is done: a folder, or a file."""
        return self.into if self.is_archive else f"{self.into}/{self.file_name}"


class EmbeddedSource(_Strict):
    """The world `shapes`, drawn on demand and served over loopback."""

    kind: Literal["embedded"]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it has."""
        return get_args(Split)


class UrlSource(_Strict):
    """Lists of image URLs with captions."""

    kind: Literal["urls"]
    format: ListFormat
    """tsv has no quoting: a row is a line; csv has double quotes (RFC 4180); jsonl holds an object a line."""
    header: bool = True
    """Whether the first row of a tsv or csv names the columns."""
    url: str | int = "url"
    """The column's name, or its number from 0 on."""
    caption: str | int | None = "caption"
    """As `url`; images of a list without captions get none."""
    files: dict[str, _Several[SourceFile]] = Field(min_length=1)
    """Split -> its files, in order."""

    @model_validator(mode="after")
    def _columns_can_be_found(self) -> "UrlSource":
        columns = {"url": self.url, "caption": self.caption}
        numbered = self.format in ("tsv", "csv") and not self.header
        for key, column in columns.items():
            if numbered and isinstance(column, str):
                raise ValueError(f"{key}: without a header columns have numbers, from 0 on, not names like {column!r}")
            if isinstance(column, int) and column < 0:
                raise ValueError(f"{key}: columns are counted from 0 on, got {column}")
            if self.format == "jsonl" and isinstance(column, int):
                raise ValueError(f"{key}: keys of JSON objects have names, no numbers such as {column}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it has."""
        return tuple(self.files)


class WebdatasetSource(_Strict):
    """Images in tars that img2dataset or another writer of webdataset made."""

    kind: Literal["webdataset"]
    tars: dict[str, _Several[_Url]] = Field(min_length=1)
    """Split -> URLs; {0000..0575} stands for a range of numbers with as many digits."""

    @model_validator(mode="after")
    def _names_differ(self) -> "WebdatasetSource":
        for split in self.tars:
            names = [PurePosixPath(urlsplit(url).path).name for url in self.urls(split)]
            if wrong := [name for name in names if not name.endswith(".tar")]:
                raise ValueError(f"tars.{split}: {wrong[0]!r} is no .tar")
            if len(set(names)) < len(names):
                raise ValueError(f"tars.{split}: two tars have the same file name")
        return self

    def urls(self, split: str) -> list[str]:
        """The URLs of all tars of a split, in order."""
        return [url for pattern in self.tars[split] for url in _expand(pattern)]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it has."""
        return tuple(self.tars)


class ArchiveSource(_Strict):
    """Archives of images, and the annotation files that belong to them."""

    kind: Literal["archives"]
    files: dict[str, _Several[ArchiveFile]] = Field(min_length=1)
    """Split -> all files that it needs; files of several splits are fetched once."""

    @model_validator(mode="after")
    def _places_differ(self) -> "ArchiveSource":
        for split, wanted in self.files.items():
            places = [file.place for file in wanted]
            for place, other in combinations(places, 2):
                if f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/"):
                    raise ValueError(f"files.{split}: {other} and {place} clash: each archive needs its own folder")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it has."""
        return tuple(self.files)


Source = Annotated[
    EmbeddedSource | UrlSource | WebdatasetSource | ArchiveSource,
    Field(discriminator="kind"),
]


class Alive(_Strict):
    """How many URLs of a list still gave an image, as somebody measured it."""

    fraction: float = Field(gt=0, le=1)
    year: int
    source: str = Field(min_length=1)


class Manifest(_Strict):
    """A dataset that `dialog-gen download` can fetch."""

    name: str
    """The file's stem where the file gives none."""
    description: str = Field(min_length=1)
    homepage: str | None = None
    licence: str = Field(min_length=1)
    """An SPDX identifier, or the terms in words; images mostly belong to their owners."""
    source: Source
    rows: dict[str, PositiveInt] = {}
    """Split -> images or, of a list, URLs; where that is known."""
    alive: Alive | None = None
    columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What is stored beside each image."""
    becomes: dict[Use, Annotated[str, AfterValidator(_template)]] = {}
    """What the download can be used for -> the options of `dialog-gen run`, or of `dialog-eval retrieval`, `vqa` or
    `classify`, that read it; {out} and {split} stand for the download's."""

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
        if not isinstance(self.source, UrlSource | ArchiveSource):
            return 0
        sizes = {file.url: file.size_bytes or 0 for wanted in self.source.files.values() for file in wanted}
        return sum(sizes.values())

    def uses(self, out: Path, split: str) -> dict[Use, str]:
        """`becomes` with the download's own paths."""
        return {use: options.format(out=quote(str(out)), split=split) for use, options in self.becomes.items()}


def of_split(by_split: Mapping[str, _T], split: str) -> _T:
    """The entry of a split. Raises UsageError for one that is not there."""
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

    Raises UsageError for an unknown name, an unreadable file or contents that are no manifest.
    """
    if name_or_file not in shipped_manifests() and (list_format := _list_format(name_or_file)):
        return _of_list(Path(name_or_file), list_format)
    path = find_toml(name_or_file, shipped_manifests(), "manifest")
    manifest = read_toml_model(path, Manifest, "manifest")
    return manifest.model_copy(update={"source": _with_paths(manifest.source, path.parent)})


def _list_format(name: str) -> ListFormat | None:
    return next((of for ending, of in LIST_FORMATS.items() if name.lower().endswith(ending)), None)


def _of_list(path: Path, list_format: ListFormat) -> Manifest:
    if not path.is_file():
        raise UsageError(f"list of URLs {path}: no such file.")
    return Manifest(
        name=path.name.split(".")[0] or path.name,
        description=f"The URLs in {path.name}",
        licence="that of each image",
        source=UrlSource(
            kind="urls", format=list_format, files={BARE_LIST_SPLIT: (SourceFile(path=str(path.absolute())),)}
        ),
        columns=("url", "caption"),
        becomes={"images": "--images {out}/images"},
    )


def _with_paths(source: Source, folder: Path) -> Source:
    """The source with the paths of its files taken from the manifest's folder."""
    if not isinstance(source, UrlSource | ArchiveSource):
        return source
    found = {
        split: tuple(
            file.model_copy(update={"path": str((folder / file.path).absolute())}) if file.path else file
            for file in wanted
        )
        for split, wanted in source.files.items()
    }
    return source.model_copy(update={"files": found})


def _expand(pattern: str) -> list[str]:
    """Every string that a pattern with {first..last} stands for."""
    texts = _RANGE.split(pattern)
    ranges = [
        [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        for first, last in zip(texts[1::3], texts[2::3], strict=True)
    ]
    return [
        "".join(p for pair in zip(texts[::3], (*chosen, ""), strict=True) for p in pair) for chosen in product(*ranges)
    ]
