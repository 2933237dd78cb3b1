"""Downloads files as they are published: archives, which are unpacked, annotation files and webdataset tars.

`OUT/download.json` lists every complete file with its SHA-256; the key is its path in OUT. A file gets its entry when
it is complete in `OUT/.download`; then it is moved to its path by one rename. After an interruption, the next run does
the rename if it is missing, or continues to fetch the file where it stopped.
"""

import logging
import re
import shutil
import tarfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field, model_validator

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import write_json, writing
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.sealed_json import sealed
from dialog_gen.download.folder import KEPT, locked, read_json, work_folder
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.manifests import (
    DOWNLOADS,
    DownloadRequest,
    DownloadSource,
    DownloadSummary,
    FilesSource,
    HttpUrl,
    Manifest,
    NonEmpty,
    PathBelow,
    SourceFile,
    check_places_differ,
    file_name_of,
    of_split,
)
from dialog_gen.download.resumable import digest, fetch_file, remove
from dialog_gen.download.unpack import unpack
from dialog_gen.sources.images import IMAGE_EXTENSIONS

ARCHIVE_EXTENSIONS: Final = (".zip", ".tar", ".tar.gz", ".tgz")

MAX_TARS: Final = 1_000_000
"""The largest number of tars in a split, so that a slip in a range is an error and not endless work."""

_MAX_DIGITS: Final = 18
_RANGE: Final = re.compile(r"\{(\d+)\.\.(\d+)\}")
_IMAGE_ENDINGS: Final = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSummary(DownloadSummary):
    """The files of a split in `out` after a download."""

    out: Path
    files: int
    """Number of files of the split: archives, annotation files and tars."""
    fetched_bytes: int
    """Bytes of the files that this download fetched."""
    images: int | None = None
    """Images in webdataset tars; None for archives."""
    uses: dict[str, str] = field(default_factory=dict[str, str])
    """Use of the files -> the command-line options that read them."""

    def to_json(self) -> dict[str, Any]:
        """The fields, with `out` as text."""
        return {**asdict(self), "out": str(self.out)}

    def __str__(self) -> str:
        images = "" if self.images is None else f", {count_of(self.images, 'image')}"
        done = f"{self.fetched_bytes / 1e6:,.1f} MB fetched" if self.fetched_bytes else "complete already"
        commands = {
            "images": "dialog-gen run",
            "retrieval": "dialog-eval retrieval",
            "vqa": "dialog-eval vqa",
            "classification": "dialog-eval classify",
        }
        hints = [f"  {commands[use]} {options} ..." for use, options in self.uses.items()]
        return "\n".join([f"{self.out}: {count_of(self.files, 'file')}{images}; {done}", *hints])


@dataclass(frozen=True, slots=True)
class _Item:
    file: SourceFile
    place: str
    """Its path in the output folder."""
    is_archive: bool = False


class ArchiveFile(SourceFile):
    """A zip or tar, which is unpacked, or any other file, which is stored unchanged."""

    into: PathBelow
    """A folder in the output folder: an archive is unpacked as this folder, another file is put into it. An archive
    that contains only a folder of the same name becomes that folder."""

    @property
    def is_archive(self) -> bool:
        """Whether the file is an archive, which is unpacked."""
        return self.file_name.lower().endswith(ARCHIVE_EXTENSIONS)

    @property
    def place(self) -> str:
        """Path in the output folder when the file is complete: a folder for an archive, else a file."""
        return self.into if self.is_archive else f"{self.into}/{self.file_name}"


class PublishedFiles(DownloadSource):
    """A source whose files are fetched as they are published."""

    has_tars_of_images: ClassVar[bool]

    def download(self, request: DownloadRequest) -> FilesSummary:
        """Fetches the files of the split; see `fetch_files` for the errors."""
        return fetch_files(
            request.manifest,
            request.split,
            request.out,
            request.options.policy,
            request.limit,
            request.on_progress,
        )

    @abstractmethod
    def items(self, manifest: str, split: str, limit: int | None) -> Iterable[_Item]:
        """The files of a split, in order. Raises UsageError for an unknown split or a limit that is not supported."""


@DOWNLOADS.register("archives")
class ArchiveSource(FilesSource[ArchiveFile], PublishedFiles):
    """Archives of images, and the annotation files that belong to them."""

    has_tars_of_images: ClassVar[bool] = False

    def items(self, manifest: str, split: str, limit: int | None) -> Iterable[_Item]:
        """All files of the split. Raises UsageError for a limit."""
        if limit is not None:
            raise UsageError(
                f"--limit {limit}: {manifest} comes in archives, whole or not at all; leave it out here, "
                "`dialog-gen run` takes a --limit."
            )
        return [_Item(file, file.place, file.is_archive) for file in of_split(self.files, split)]


@DOWNLOADS.register("webdataset")
class WebdatasetSource(PublishedFiles):
    """Images in webdataset tars, which img2dataset or another program wrote."""

    has_tars_of_images: ClassVar[bool] = True

    tars: dict[str, NonEmpty[HttpUrl]] = Field(min_length=1)
    """Split -> URLs; {0000..0575} stands for a range of numbers with the same number of digits. A split has at most
    `MAX_TARS` tars."""

    @model_validator(mode="after")
    def _check_names_differ(self) -> "WebdatasetSource":
        for split, patterns in self.tars.items():
            try:
                if (count := sum(map(_count, patterns))) > MAX_TARS:
                    raise ValueError(f"stands for {count:,} tars, the most are {MAX_TARS:,}")
                urls = self.urls(split)
                if len(patterns) == 1 and _names_differ(patterns[0]):
                    urls = islice(urls, 1)
                check_places_differ((_tar_name(url), url) for url in urls)
            except ValueError as error:
                raise ValueError(f"tars.{split}: {error}") from None
        return self

    def urls(self, split: str) -> Iterator[str]:
        """The URLs of all tars of a split, in order."""
        return (url for pattern in of_split(self.tars, split) for url in _expand(pattern))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have tars."""
        return tuple(self.tars)

    def items(self, manifest: str, split: str, limit: int | None) -> Iterable[_Item]:
        """All tars of the split. `limit` is applied while they are fetched, when the number of images is known."""
        files = (SourceFile(url=url) for url in self.urls(split))
        return (_Item(file, f"images/{file.file_name}") for file in files)


def fetch_files(
    manifest: Manifest,
    split: str,
    out: Path,
    policy: FetchPolicy,
    limit: int | None,
    on_progress: OnProgress = ignore_progress,
) -> FilesSummary:
    """Fetches the files of a split into `out`, unpacks archives, and returns a summary.

    A complete file is not fetched again; an incomplete file is continued. A folder can contain files of several splits,
    but webdataset tars of one split only. With a `limit`, tars are fetched until they contain this many images;
    archives do not support a limit. `policy` applies except for its limits of size and total time, as files are large.

    Raises UsageError if `out` has another dataset, for a limit on archives, and for a missing file that must be
    downloaded by hand; FailedCheckError for a file that cannot be fetched, differs from the manifest, or cannot be
    unpacked safely.
    """
    source = manifest.source
    if not isinstance(source, PublishedFiles):
        raise UsageError(f"{manifest.name} does not consist of files: its source is of kind {source.kind!r}")
    items = source.items(manifest.name, split, limit)
    images = files = 0
    with writing(out, left=KEPT), locked(out):
        download = _Download(manifest.name, split, source.has_tars_of_images, out, policy, on_progress)
        for item in items:
            images += download.get(item)
            files += 1
            if limit and images >= limit:
                break
        shutil.rmtree(work_folder(out), ignore_errors=True)
    if source.has_tars_of_images and not limit and images != manifest.rows.get(split, images):
        _log.warning("%s: %s where the manifest expects %d", out, count_of(images, "image"), manifest.rows[split])
    return FilesSummary(
        out=out,
        files=files,
        fetched_bytes=download.fetched_bytes,
        images=images if source.has_tars_of_images else None,
        uses={str(use): options for use, options in manifest.uses(out, split).items()},
    )


class _Download:
    """A download into one output folder, with its download.json."""

    def __init__(
        self, manifest: str, split: str, of_images: bool, out: Path, policy: FetchPolicy, on_progress: OnProgress
    ) -> None:
        self._out, self._policy, self._on_progress = out, policy, on_progress
        self._of_images = of_images
        self.fetched_bytes = 0
        request = {"manifest": manifest} | ({"split": split} if of_images else {})
        # A request.json belongs to an unfinished download of a URL list.
        begun = read_json(out / "download.json") or read_json(work_folder(out) / "request.json")
        self._record = begun or {**request, "files": {}}
        if "files" not in self._record or any(self._record.get(key) != value for key, value in request.items()):
            was, now = (
                " ".join(str(asked[key]) for key in ("manifest", "split") if key in asked)
                for asked in (self._record, request)
            )
            raise UsageError(f"{out} holds a download of {was}, but {now} was requested: choose another folder.")

    def get(self, item: _Item) -> int:
        """Fetches a file unless it is complete; returns the number of images in a webdataset tar, else 0."""
        file, place = item.file, self._out / item.place
        done: dict[str, Any] | None = self._record["files"].get(item.place)
        ready = work_folder(self._out) / "ready" / item.place
        if done is not None:
            if done["from"] != file.origin:
                raise UsageError(
                    f"{place} was made of {done['from']}, the manifest now says {file.origin}: choose another folder."
                )
            if not place.exists() and ready.exists():
                _move(ready, place)
            if place.exists():
                _require_whole(place, item, done)
                return done.get("images", 0)
        elif place.exists():
            raise UsageError(f"{place} exists, but is not part of a known download: move it away.")
        remove(ready)
        done = self._make_ready(item, ready)
        self._record["files"][item.place] = done
        write_json(self._out / "download.json", sealed(self._record))
        _move(ready, place)
        remove(self._fetched(item))
        return done.get("images", 0)

    def _fetched(self, item: _Item) -> Path:
        """The folder into which the file is fetched."""
        return work_folder(self._out) / "fetched" / item.place

    def _make_ready(self, item: _Item, ready: Path) -> dict[str, Any]:
        """Fetches a file, and unpacks an archive, to `ready`; returns its entry in download.json."""
        file = item.file
        fetched = fetch_file(file, self._fetched(item), self._out, self._policy, self._on_progress)
        is_ours = fetched.parent == self._fetched(item)
        done: dict[str, Any] = {
            "from": file.origin,
            "size_bytes": fetched.stat().st_size,
            "sha256": file.sha256 or digest(fetched, "sha256"),
        }
        ready.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._of_images:
                done["images"] = _count_images(fetched)
            if item.is_archive:
                self._on_progress(f"unpacking {file.file_name}", 0, None)
                done["unpacked_files"] = count = unpack(fetched, ready)
                self._on_progress(f"unpacking {file.file_name}", count, count)
            elif is_ours:
                fetched.rename(ready)
            else:
                shutil.copyfile(fetched, copy := ready.with_name(f"{ready.name}.part"))
                copy.rename(ready)
        except FailedCheckError as error:
            if not is_ours:
                raise
            # Otherwise the next try would use the same damaged file.
            remove(fetched)
            raise FailedCheckError(f"{error} What came from {file.url} was removed.") from None
        if is_ours:
            self.fetched_bytes += done["size_bytes"]
        return done


def _require_whole(place: Path, item: _Item, done: dict[str, Any]) -> None:
    """Raises UsageError for a file of another size than it had; what an archive was unpacked to is not looked at."""
    if not item.is_archive and (size := place.stat().st_size) != done["size_bytes"]:
        raise UsageError(
            f"{place} has {size} bytes, it had {done['size_bytes']}: remove it, and run again to fetch it anew."
        )


def _count_images(tar: Path) -> int:
    try:
        with tarfile.open(tar) as file:
            count = sum(member.name.lower().endswith(_IMAGE_ENDINGS) for member in file)
    except tarfile.TarError as error:
        raise FailedCheckError(f"{tar.name} is no tar: {error}.") from None
    if not count:
        raise FailedCheckError(f"{tar.name} holds no images.")
    return count


def _move(ready: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    ready.rename(place)


def _tar_name(url: str) -> str:
    name = file_name_of(url)
    if not name.endswith(".tar"):
        raise ValueError(f"{name!r} is no .tar")
    return name


def _names_differ(pattern: str) -> bool:
    """Whether the tars of a pattern have different names for sure: its ranges are in the name, and of a fixed width."""
    ranges: list[tuple[str, str]] = _RANGE.findall(pattern)
    same_width = all(len(first) == len(last) for first, last in ranges)
    return "%" not in pattern and same_width and ranges == _RANGE.findall(file_name_of(pattern))


def _count(pattern: str) -> int:
    """The number of strings that a pattern stands for. Raises ValueError for a range that is empty or too large."""
    count = 1
    for first, last in _RANGE.findall(pattern):
        if max(len(first), len(last)) > _MAX_DIGITS:
            raise ValueError(f"a range of numbers of more than {_MAX_DIGITS} digits")
        if int(first) > int(last):
            raise ValueError(f"the range {{{first}..{last}}} is empty: give the smaller number first")
        count *= int(last) - int(first) + 1
    return count


def _expand(pattern: str) -> Iterator[str]:
    """Every string that a pattern with {first..last} stands for, in order."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        for rest in _expand(pattern[found.end() :]):
            yield f"{pattern[: found.start()]}{number:0{len(first)}d}{rest}"
