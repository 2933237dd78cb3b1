"""Files fetched as they are published: archives, which are unpacked, annotation files, webdataset tars.

`OUT/download.json` names every file that is complete, with its SHA-256, by the place it has in OUT. A file gets its
entry when all of it lies in `OUT/.download`, and then is moved to its place by one rename: after an interruption either
the rename is made up for, or the file is fetched on from where it stopped.
"""

import logging
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import write_json, writing
from dialog_gen.download.fetch import FetchPolicy
from dialog_gen.download.folder import KEPT, locked, read_json, work_folder
from dialog_gen.download.manifests import ArchiveSource, Manifest, SourceFile, WebdatasetSource, of_split
from dialog_gen.download.resumable import digest, fetch_file, remove, transfer_bar
from dialog_gen.download.unpack import unpack
from dialog_gen.sources.images import IMAGE_EXTENSIONS

_IMAGE_ENDINGS: Final = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSummary:
    """What lies in `out` after a download of files."""

    out: Path
    files: int
    """Files of the split: archives, annotations, tars."""
    fetched_bytes: int
    """What this download brought; none where all was there."""
    images: int | None = None
    """Images in webdataset tars."""
    uses: dict[str, str] = field(default_factory=dict[str, str])
    """What it can be used for -> options that read it."""

    def __str__(self) -> str:
        images = "" if self.images is None else f", {self.images} images"
        done = f"{self.fetched_bytes / 1e6:,.1f} MB fetched" if self.fetched_bytes else "complete already"
        commands = {
            "images": "dialog-gen run",
            "retrieval": "dialog-eval retrieval",
            "vqa": "dialog-eval vqa",
            "classification": "dialog-eval classify",
        }
        hints = [f"  {commands[use]} {options} ..." for use, options in self.uses.items()]
        return "\n".join([f"{self.out}: {self.files} files{images}; {done}", *hints])


@dataclass(frozen=True, slots=True)
class _Item:
    file: SourceFile
    place: str
    """In the output folder."""
    is_archive: bool = False


def fetch_files(manifest: Manifest, split: str, out: Path, policy: FetchPolicy, limit: int | None) -> FilesSummary:
    """Fetches the files of a split into `out`, unpacks archives, and says what is there.

    What is complete is not fetched again; a file that was begun goes on where it stopped. Files of several splits can
    lie in one folder, webdataset tars of one split only. `limit`: as many tars as are needed for so many images;
    archives come whole or not at all. Of `policy` the limits of size and time are replaced by those of large files.

    Raises UsageError for another dataset's folder, a limit on archives, and a file that must be got by hand and is not
    there; FailedCheckError for what cannot be fetched, is not what the manifest promises, or cannot be unpacked safely.
    """
    items = _items(manifest, split, limit)
    images = files = 0
    with writing(out, left=KEPT), locked(out), transfer_bar() as bar:
        download = _Download(manifest, split, out, policy, bar)
        for item in items:
            images += download.get(item)
            files += 1
            if limit and images >= limit:
                break
        shutil.rmtree(work_folder(out), ignore_errors=True)
    is_webdataset = isinstance(manifest.source, WebdatasetSource)
    if is_webdataset and not limit and images != manifest.rows.get(split, images):
        _log.warning("%s: %d images where the manifest expects %d", out, images, manifest.rows[split])
    return FilesSummary(
        out=out,
        files=files,
        fetched_bytes=download.fetched_bytes,
        images=images if is_webdataset else None,
        uses={str(use): options for use, options in manifest.uses(out, split).items()},
    )


def _items(manifest: Manifest, split: str, limit: int | None) -> list[_Item]:
    source = manifest.source
    if isinstance(source, WebdatasetSource):
        of_split(source.tars, split)
        files = [SourceFile(url=url) for url in source.urls(split)]
        return [_Item(file, f"images/{file.file_name}") for file in files]
    if not isinstance(source, ArchiveSource):
        raise UsageError(f"{manifest.name} consists of no files but of kind {source.kind!r}")
    if limit is not None:
        raise UsageError(
            f"--limit {limit}: {manifest.name} comes in archives, whole or not at all; leave it out here, "
            "`dialog-gen run` takes a --limit."
        )
    return [_Item(file, file.place, file.is_archive) for file in of_split(source.files, split)]


class _Download:
    """What is under way in one output folder."""

    def __init__(self, manifest: Manifest, split: str, out: Path, policy: FetchPolicy, bar: Progress) -> None:
        self._out, self._policy, self._bar = out, policy, bar
        self._is_webdataset = isinstance(manifest.source, WebdatasetSource)
        self.fetched_bytes = 0
        request = {"manifest": manifest.name} | ({"split": split} if self._is_webdataset else {})
        # The latter is of a download of another kind, which is not finished.
        begun = read_json(out / "download.json") or read_json(work_folder(out) / "request.json")
        self._record = begun or {**request, "files": {}}
        if "files" not in self._record or any(self._record.get(key) != value for key, value in request.items()):
            was, now = (
                " ".join(str(asked[key]) for key in ("manifest", "split") if key in asked)
                for asked in (self._record, request)
            )
            raise UsageError(f"{out} holds a download of {was}, now asked for is {now}: choose another folder.")

    def get(self, item: _Item) -> int:
        """Makes sure that a file is in its place; returns the number of its images where it is a webdataset tar."""
        file, place = item.file, self._out / item.place
        done: dict[str, Any] | None = self._record["files"].get(item.place)
        ready = work_folder(self._out) / "ready" / item.place
        if done is not None:
            if done["from"] != _origin(file):
                raise UsageError(
                    f"{place} was made of {done['from']}, the manifest now says {_origin(file)}: choose another folder."
                )
            if not place.exists() and ready.exists():
                _move(ready, place)
            if place.exists():
                return done.get("images", 0)
        elif place.exists():
            raise UsageError(f"{place} is there already, but of no known download: move it away.")
        remove(ready)
        done = self._make_ready(item, ready)
        self._record["files"][item.place] = done
        write_json(self._out / "download.json", self._record)
        _move(ready, place)
        remove(self._fetched(item))
        return done.get("images", 0)

    def _fetched(self, item: _Item) -> Path:
        """The folder for what is fetched."""
        return work_folder(self._out) / "fetched" / item.place

    def _make_ready(self, item: _Item, ready: Path) -> dict[str, Any]:
        """Fetches and unpacks; returns what is to be remembered of the file."""
        file = item.file
        fetched = fetch_file(file, self._fetched(item), self._out, self._policy, self._bar)
        is_ours = fetched.parent == self._fetched(item)
        done: dict[str, Any] = {
            "from": _origin(file),
            "size_bytes": fetched.stat().st_size,
            "sha256": file.sha256 or digest(fetched, "sha256"),
        }
        ready.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._is_webdataset:
                done["images"] = _count_images(fetched)
            if item.is_archive:
                task = self._bar.add_task(f"unpacking {file.file_name}", total=None)
                done["unpacked_files"] = unpack(fetched, ready)
                self._bar.remove_task(task)
            elif is_ours:
                fetched.rename(ready)
            else:
                shutil.copyfile(fetched, copy := ready.with_name(f"{ready.name}.part"))
                copy.rename(ready)
        except FailedCheckError as error:
            if not is_ours:
                raise
            # The next try should not find it again.
            remove(fetched)
            raise FailedCheckError(f"{error} What came from {file.url} was removed.") from None
        if is_ours:
            self.fetched_bytes += done["size_bytes"]
        return done


def _count_images(tar: Path) -> int:
    try:
        with tarfile.open(tar) as file:
            count = sum(member.name.lower().endswith(_IMAGE_ENDINGS) for member in file)
    except tarfile.TarError as error:
        raise FailedCheckError(f"{tar.name} is no tar: {error}.") from None
    if not count:
        raise FailedCheckError(f"{tar.name} holds no images.")
    return count


def _origin(file: SourceFile) -> str:
    return file.url or file.path or file.file_name


def _move(ready: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    ready.rename(place)
