"""Downloads a list of image URLs: writes tars, with the outcome of each URL, to OUT/images, and OUT/link_rot.json.

The tars are in OUT/.download until all of them are complete; then they are moved to OUT/images.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.checksums import write_checksums
from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import whole_folder, write_json, writing
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.sealed_json import sealed
from dialog_gen.core.toml_files import fit_model
from dialog_gen.download.folder import KEPT, begin, finish, has_begun, is_complete, locked, read_json, work_folder
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.img2dataset.resize import IMAGE_SIZE_PX
from dialog_gen.download.img2dataset.supervisor import download_list, finished_shards, outcomes_of, require_img2dataset
from dialog_gen.download.link_rot import LinkRot, fetch_failed, measure, remove_damaged_list, retry_folders
from dialog_gen.download.list_formats import ListOptions, Row, list_rows
from dialog_gen.download.list_notes import ListNotes, describe
from dialog_gen.download.manifests import (
    DOWNLOADS,
    DownloadOptions,
    DownloadRequest,
    DownloadSummary,
    FilesSource,
    SourceFile,
    of_split,
)
from dialog_gen.download.resumable import digest, fetch_file, require_regular

SCHEMA: Final = pa.schema([("url", pa.string()), ("caption", pa.string())])
"""Columns of a list in the form that img2dataset reads."""

ROWS_PER_FILE: Final = 1 << 18

_BATCH_ROWS: Final = 8192
_MADE: Final = ("images", "link_rot.json")
_NOTES: Final = "notes.json"

_log = logging.getLogger(__name__)


@DOWNLOADS.register("urls")
class UrlSource(ListOptions, FilesSource[SourceFile]):
    """Lists of image URLs with captions."""

    can_retry_failed: ClassVar[bool] = True
    own_names: ClassVar[frozenset[str]] = frozenset(("download.json", "manifest.json", *_MADE))

    def with_columns(self, url: str | None, caption: str | None) -> "UrlSource":
        """A copy with other columns. A list without a header has numbers, counted from 0, instead of names."""
        asked = {"url": url, "caption": caption}
        columns = {
            key: int(column) if not self.header and column.isdecimal() else column
            for key, column in asked.items()
            if column is not None
        }
        flags = ", ".join(f"--{key}-column {column}" for key, column in columns.items())
        return fit_model({**self.model_dump(), **columns}, UrlSource, flags)

    def download(self, request: DownloadRequest) -> "ImagesSummary":
        """Prepares the list and downloads its images; see `download_url_list` for the errors."""
        policy, split, out, limit = request.options.policy, request.split, request.out, request.limit
        return download_url_list(
            lambda into: prepare_url_list(
                self, split, into, limit, out=out, policy=policy, on_progress=request.on_progress
            ),
            out,
            request=list_request(request.manifest.name, self, split, limit),
            options=request.options,
            retry_failed=request.retry_failed,
            on_progress=request.on_progress,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesSummary(DownloadSummary):
    """The images in the tars of `out` after a download; `already_complete` if there was nothing to do."""

    out: Path
    images: int
    shards: int
    already_complete: bool
    link_rot: LinkRot | None = None
    """None if the images do not come from a list of URLs."""
    list_notes: dict[str, Any] = field(default_factory=dict[str, Any])
    """What could not be used of the rows of the list, in the form of `ListNotes.to_json`."""

    def __str__(self) -> str:
        found = "complete already, nothing to do" if self.already_complete else "downloaded"
        text = f"{self.out}: {found}: {count_of(self.images, 'image')} in {count_of(self.shards, 'tar')}"
        return text if self.link_rot is None else "\n".join([text, str(self.link_rot), *self._notes()])

    def _notes(self) -> list[str]:
        return [f"  {line}" for line in describe(self.list_notes)]

    def to_json(self) -> dict[str, Any]:
        """The fields, with `out` as text."""
        link_rot = {} if self.link_rot is None else {"link_rot": self.link_rot.to_json()}
        own = {key: value for key, value in asdict(self).items() if key != "link_rot"}
        return {**own, "out": str(self.out), **link_rot}


def prepare_url_list(
    source: UrlSource,
    split: str,
    into: Path,
    limit: int | None,
    *,
    out: Path,
    policy: FetchPolicy,
    rows_per_file: int = ROWS_PER_FILE,
    on_progress: OnProgress = ignore_progress,
) -> int:
    """Writes the first `limit` rows of a split to `into`/00000.parquet and so on; returns the number of rows.

    The files have the columns of `SCHEMA` and `rows_per_file` rows each; the last file has the rest. Fetched lists are
    stored in the folder `out`, where lists that were downloaded by hand are also expected. What could not be used of
    the rows is logged, and written to `into`/notes.json. `into` becomes visible when it is complete; if it exists
    already and is not damaged, it is left unchanged.

    Raises UsageError for a list that is missing, cannot be read, lacks a column or has no URL; FailedCheckError for a
    list that cannot be fetched.
    """
    remove_damaged_list(into)
    if not into.exists():
        lists = [fetch_file(file, out, out, policy, on_progress) for file in of_split(source.files, split)]
        notes = ListNotes()
        rows = islice(chain.from_iterable(list_rows(path, source, notes) for path in lists), limit)
        with whole_folder(into) as part:
            _write_list(part, rows, rows_per_file, ", ".join(map(str, lists)))
            if notes.rows:
                write_json(part / _NOTES, notes.to_json())
            write_checksums(part)
        for line in describe(notes.to_json()):
            _log.warning("%s", line)
    return sum(pq.read_metadata(path).num_rows for path in into.glob("*.parquet"))


def list_request(name: str, source: UrlSource, split: str, limit: int | None) -> dict[str, Any]:
    """The request that identifies a download of a URL list. Local lists are identified by their name and content.

    Raises UsageError for a local list that cannot be read or is not a regular file.
    """
    files = of_split(source.files, split)
    paths = [None if file.url else Path(file.path or file.file_name) for file in files]
    for path in paths:
        if path and path.exists():
            require_regular(path)
    return {
        "manifest": name,
        "split": split,
        "limit": limit,
        "lists": [file.url if path is None else _name_and_size(path) for file, path in zip(files, paths, strict=True)],
        "list_sha256": [digest(path, "sha256") if path and path.exists() else None for path in paths],
        "columns": [source.url, source.caption],
    }


def download_url_list(
    prepare: Callable[[Path], int],
    out: Path,
    *,
    request: dict[str, Any],
    options: DownloadOptions,
    retry_failed: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ImagesSummary:
    """Downloads the images of a URL list into `out`.

    `prepare` writes the list to the folder that it is given, in the form of `prepare_url_list`, unless the folder
    exists already. `request` identifies the download; `out` must be empty or have a download of the same request. An
    interrupted download continues where it stopped. A complete one is left unchanged; with `retry_failed`, every URL
    that failed is requested once more, except those whose outcome is in `FINAL`.

    Raises UsageError if `out` contains something else or lacks tars, MissingExtraError if img2dataset is not installed,
    FailedCheckError if shards could not be finished or no URL gave an image.
    """
    request = {**request, "shard_size": options.shard_size, "image_size": IMAGE_SIZE_PX}
    require_img2dataset()
    with writing(out, left=KEPT), locked(out):
        nothing_done = is_complete(out, request, _MADE)
        if not nothing_done:
            _download(prepare, out, request, options, on_progress)
        link_rot = measure(out / "images")  # before a retry, which cannot distinguish lost files from failed URLs
        if retry_failed and fetch_failed(out, options, on_progress):
            nothing_done = False
            link_rot = measure(out / "images")
        list_notes = (read_json(out / "download.json") or {}).get("list_notes", {})
        write_json(out / "link_rot.json", sealed({**link_rot.to_json(), "list_notes": list_notes}))
    images = link_rot.outcomes["success"]
    summary = ImagesSummary(
        out=out,
        images=images,
        shards=_shards(out),
        already_complete=nothing_done,
        link_rot=link_rot,
        list_notes=list_notes,
    )
    if not images:
        causes = ", ".join(f"{count} x {outcome}" for outcome, count in link_rot.outcomes.most_common(3))
        raise FailedCheckError(
            f"not one of {count_of(link_rot.rows, 'URL')} gave an image ({causes}): is there a network, and do "
            f"a few of them "
            f"open in a browser? The same command with --retry-failed tries again; all counts: {out / 'link_rot.json'}"
        )
    return summary


def _name_and_size(path: Path) -> str:
    return f"{path.name} ({path.stat().st_size} bytes)" if path.exists() else path.name


def _download(
    prepare: Callable[[Path], int],
    out: Path,
    request: dict[str, Any],
    options: DownloadOptions,
    on_progress: OnProgress,
) -> None:
    work = work_folder(out)
    if not has_begun(out):
        shutil.rmtree(work / "urls", ignore_errors=True)
    try:
        prepare(work / "urls")
    except UsageError:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            out.rmdir()  # succeeds only if the folder is empty
        raise
    begin(out, request)
    download_list(work, options, "downloading", on_progress)
    done = finished_shards(work / "images")
    notes = read_json(work / "urls" / _NOTES) or {}
    images = sum(outcomes_of(stats)["success"] for stats in done.values())
    finish(out, request, images=images, shards=len(done), list_notes=notes)


def _shards(out: Path) -> int:
    return sum(len(finished_shards(folder)) for folder in (out / "images", *retry_folders(out / "images")))


def _write_list(folder: Path, rows: Iterator[Row], rows_per_file: int, names: str) -> None:
    with_url = 0
    for number in range(1 << 62):
        of_file = islice(rows, rows_per_file)
        batch = list(islice(of_file, _BATCH_ROWS))
        if not batch:
            break
        with pq.ParquetWriter(folder / f"{number:05d}.parquet", SCHEMA) as writer:
            while batch:
                with_url += sum(1 for url, _ in batch if url)
                urls, captions = zip(*batch, strict=True)
                writer.write_batch(pa.record_batch([urls, captions], schema=SCHEMA))
                batch = list(islice(of_file, _BATCH_ROWS))
    if not with_url:
        raise UsageError(f"{names}: no row has a URL. Are format and columns right?")
