"""Downloads a list of image URLs: tars in `images`, what became of each URL beside them, link_rot.json in summary.

What lies in OUT/.download until it is complete is moved to OUT/images then.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import write_json, writing
from dialog_gen.download.folder import KEPT, begin, finish, has_begun, is_complete, locked, work_folder
from dialog_gen.download.job import DownloadOptions
from dialog_gen.download.link_rot import LinkRot, measure, retry_folders
from dialog_gen.download.manifests import UrlSource, of_split
from dialog_gen.download.resize import IMAGE_SIZE_PX
from dialog_gen.download.resumable import digest
from dialog_gen.download.retry import fetch_failed
from dialog_gen.download.supervisor import download_list, finished_shards, require_img2dataset

_MADE: Final = ("images", "link_rot.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadSummary:
    """What lies in `out` after a download; `already_complete` where there was nothing to do."""

    out: Path
    images: int
    shards: int
    already_complete: bool
    link_rot: LinkRot | None = None
    """Of a list of URLs."""

    def __str__(self) -> str:
        found = "complete already, nothing to do" if self.already_complete else "downloaded"
        text = f"{self.out}: {found}: {self.images} images in {self.shards} tars"
        return text if self.link_rot is None else f"{text}\n{self.link_rot}"

    def to_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        link_rot = {} if self.link_rot is None else {"link_rot": self.link_rot.to_json()}
        own = {key: value for key, value in asdict(self).items() if key != "link_rot"}
        return {**own, "out": str(self.out), **link_rot}


def list_request(name: str, source: UrlSource, split: str, limit: int | None) -> dict[str, Any]:
    """What tells a download of a manifest's URL list from another. A list on this machine goes by name and content."""
    files = of_split(source.files, split)
    paths = [None if file.url else Path(file.path or file.file_name) for file in files]
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
) -> DownloadSummary:
    """Downloads what a URL list names into `out`.

    `prepare` writes the list to the folder it is given, if that is not there yet: see `Job.urls`. `request` is what the
    folder is made for; another one is refused. An interrupted download goes on where it stopped; a complete one is left
    as it is, but `retry_failed` asks once more for every URL that failed and is not in `FINAL`.

    Raises UsageError where `out` holds something else or lost tars, MissingExtraError where img2dataset is not
    installed, FailedCheckError where shards are left, or where not one image could be had.
    """
    request = {**request, "shard_size": options.shard_size, "image_size": IMAGE_SIZE_PX}
    require_img2dataset()
    with writing(out, left=KEPT), locked(out):
        nothing_done = is_complete(out, request, _MADE)
        if not nothing_done:
            _download(prepare, out, request, options)
        link_rot = measure(out / "images")  # first: what is lost cannot be told from what failed
        if retry_failed and fetch_failed(out, options):
            nothing_done = False
            link_rot = measure(out / "images")
        write_json(out / "link_rot.json", link_rot.to_json())
    images = link_rot.outcomes["success"]
    summary = DownloadSummary(
        out=out, images=images, shards=_shards(out), already_complete=nothing_done, link_rot=link_rot
    )
    if not images:
        causes = ", ".join(f"{count} x {outcome}" for outcome, count in link_rot.outcomes.most_common(3))
        raise FailedCheckError(
            f"not one of {link_rot.rows} URLs gave an image ({causes}): is there a network, and do a few of them "
            f"open in a browser? The same command with --retry-failed asks again; all counts: {out / 'link_rot.json'}"
        )
    return summary


def _name_and_size(path: Path) -> str:
    return f"{path.name} ({path.stat().st_size} bytes)" if path.exists() else path.name


def _download(prepare: Callable[[Path], int], out: Path, request: dict[str, Any], options: DownloadOptions) -> None:
    work = work_folder(out)
    if not has_begun(out):
        shutil.rmtree(work / "urls", ignore_errors=True)
    try:
        prepare(work / "urls")
    except UsageError:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):
            out.rmdir()  # where it holds nothing else
        raise
    begin(out, request)
    download_list(work, options, "downloading")
    done = finished_shards(work / "images")
    finish(out, request, images=sum(stats["successes"] for stats in done.values()), shards=len(done))


def _shards(out: Path) -> int:
    return sum(len(finished_shards(folder)) for folder in (out / "images", *retry_folders(out / "images")))
