"""Publishes a dataset folder on the Hub in one commit: readers see either the complete old or the complete new version.

Large files are uploaded first. Files that the Hub already has are not sent again, so after a failure the same command
continues where it stopped.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.intact import check_unique_ids, footer, intact_manifests
from dialog_gen.dataset.locks import refuse_while_written
from dialog_gen.dataset.verify import verify as verify_dataset
from dialog_gen.download.provenance import NAME as IMAGES_JSON
from dialog_gen.download.provenance import ImageProvenance
from dialog_gen.publish.bucket import Bucket, bucket_files, check_bucket, fill_bucket
from dialog_gen.publish.card import check_licence, make_card
from dialog_gen.publish.card_data import CardData, card_data
from dialog_gen.publish.commit import commit_files
from dialog_gen.publish.compact import has_images, merge_shards, rows_without_url
from dialog_gen.publish.hub import NOTES, Hub, Repository, check_name, differences
from dialog_gen.publish.thumbnails import THUMBNAILS, thumbnail_grid

_STAGE = ".publish"
_STAGE_SHARD_MB = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSummary:
    """The version that was published."""

    repo: str
    commit: str | None
    """The commit's hash; None in a bucket, and for a push that was only tried."""
    url: str
    images: int
    pairs: int
    files: int
    bytes: int
    dry_run: bool = False

    def __str__(self) -> str:
        text = (
            f"{self.url}: {count_of(self.images, 'image')}, {count_of(self.pairs, 'question-answer pair')}, "
            f"{self.bytes / 1e6:.1f} MB"
        )
        return f"{text}, in {count_of(self.files, 'file')}; nothing was sent" if self.dry_run else text


def push(
    dataset: str | Path | DatasetFolder,
    repo: str,
    *,
    without_images: bool = False,
    private: bool = False,
    licence: str | None = None,
    link_rot: Path | None = None,
    message: str | None = None,
    thumbnails: bool = False,
    replace: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> PushSummary:
    """Publishes a dataset with its card as the whole content of the repository `repo` (USER/NAME).

    `repo` may also be a storage bucket, or a folder in one: hf://buckets/USER/NAME. It has no commits, so readers may
    see an incomplete version during the upload.

    `without_images` publishes URLs and checksums instead of the bytes of images; then each accepted row must have a
    URL. `private` makes a new repository private. `licence` is an SPDX identifier or the terms in words. `link_rot` is
    a link_rot.json that replaces the one next to the images. `message` is the message of the commit. `replace` allows
    overwriting a repository that contains something else. With `verify`, every byte is checked first, otherwise only
    sizes and that ids are unique. `thumbnails` adds a picture of 24 images to the card, if their licence allows that.
    With `dry_run`, everything here is checked and made, but the Hub is not asked and nothing is sent: no token needed.

    Raises UsageError for wrong arguments, a missing token, a dataset that a process writes to, and a repository that
    contains something else;
    FailedCheckError for a damaged dataset; HubError if the Hub fails. After an error, the repository is unchanged.
    """
    check_licence(licence)
    folder = open_dataset(dataset)
    bucket = Bucket.of(repo)
    if bucket is None:
        check_name(repo)
    else:
        repo = bucket.url
    refuse_while_written(folder)
    if folder.local_root is None:
        raise UsageError(f"{folder.location} is not on this machine: `dialog-gen compact` it to a local folder first.")
    manifests = intact_manifests(folder)
    for entry in (entry for manifest in manifests for entry in manifest.files):
        footer(folder, entry)
    if not verify:
        check_unique_ids([folder], ((folder, manifest) for manifest in manifests))
    if without_images or not has_images(folder.config()):
        if thumbnails:
            raise UsageError("--thumbnails shows images, and this dataset is published without them: leave it out.")
        _check_urls(folder)
    hub = Hub()
    place: _Place | None = None
    if not dry_run:
        hub.check_login()
        place = _InBucket(hub, bucket) if bucket else _InRepository(hub, repo)
        place.check(folder, private=private, replace=replace)
    with _staged(folder, without_images=without_images, on_progress=on_progress) as (staged, root):
        if verify:
            _verify(staged, folder.location, on_progress)
        data = card_data(staged, link_rot=link_rot)
        picture = thumbnail_grid(staged) if thumbnails else None
        text = make_card(data, repo, licence=licence, thumbnails=THUMBNAILS if picture else None)
        files = _files(staged, root, data, text)
        if picture:
            files[THUMBNAILS] = picture
        accepted = data.totals.accepted
        message = message or f"{count_of(data.pairs, 'dialogue pair')} about {count_of(accepted, 'image')}"
        return PushSummary(
            repo=repo,
            commit=place.fill(files, message, private=private) if place else None,
            url=repo if bucket else hub.url(repo),
            images=accepted,
            pairs=data.pairs,
            files=len(files),
            bytes=sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values()),
            dry_run=dry_run,
        )


class _Place(Protocol):
    """Where on the Hub a dataset is published."""

    def check(self, folder: DatasetFolder, *, private: bool, replace: bool) -> None:
        """Raises UsageError if there is something that must not be overwritten."""
        ...

    def fill(self, files: dict[str, Path | bytes], message: str, *, private: bool) -> str | None:
        """Makes these files the whole content; returns the hash of the commit, if there is one."""
        ...


class _InRepository:
    def __init__(self, hub: Hub, name: str) -> None:
        self._hub, self._name = hub, name
        self._there = hub.repository(name)

    def check(self, folder: DatasetFolder, *, private: bool, replace: bool) -> None:
        if self._there:
            _check_repository(self._hub, self._there, folder, private=private, replace=replace)

    def fill(self, files: dict[str, Path | bytes], message: str, *, private: bool) -> str | None:
        repository = self._there or self._hub.new_repository(self._name, private=private)
        return commit_files(self._hub, repository, files, message)


class _InBucket:
    def __init__(self, hub: Hub, bucket: Bucket) -> None:
        self._hub, self._bucket = hub, bucket
        self._there = bucket_files(hub, bucket)

    def check(self, folder: DatasetFolder, *, private: bool, replace: bool) -> None:
        if self._there is None:
            return
        if private:
            raise UsageError(f"{self._bucket.url} exists: --private is for new buckets. Change it on its page.")
        check_bucket(self._hub, self._bucket, self._there, folder.config(), replace=replace)

    def fill(self, files: dict[str, Path | bytes], message: str, *, private: bool) -> str | None:
        del message  # a bucket has no commits
        fill_bucket(self._hub, self._bucket, files, self._there, private=private)
        return None


def _verify(folder: DatasetFolder, location: str, on_progress: OnProgress) -> None:
    """Raises FailedCheckError for a damaged dataset; the message names its `location`."""
    verdict = verify_dataset(folder, on_progress=on_progress)
    if verdict.problem_count:
        raise FailedCheckError(
            f"{location} is damaged, nothing was pushed: {count_of(verdict.problem_count, 'problem')}, the first is: "
            f"{verdict.problems[0]}."
        )


def _check_urls(folder: DatasetFolder) -> None:
    """Raises UsageError if there are accepted rows whose images nobody could fetch."""
    rows, lacking = rows_without_url(folder)
    if lacking:
        here = has_images(folder.config())
        advice = "push it with its images, without --without-images" if here else "push the one that has the images"
        raise UsageError(
            f"{folder.location}: without a URL (http or https) are {lacking} of {count_of(rows, 'dialogue')}, "
            f"so nobody could fetch their images: {advice}."
        )


def _check_repository(hub: Hub, repository: Repository, folder: DatasetFolder, *, private: bool, replace: bool) -> None:
    """Raises UsageError if the repository contains something that must not be overwritten."""
    if private and not repository.private:
        raise UsageError(f"{repository.name} exists and is public: --private is for new ones. Change it on its page.")
    if replace or repository.is_empty:
        return
    if not repository.is_dataset:
        raise UsageError(
            f"{repository.name} exists and holds no dialog-gen dataset but {min(repository.files)!r}: choose another "
            "--repo, or give --replace to replace all of it by this dataset."
        )
    if differing := differences(repository.config or {}, folder.config()):
        raise UsageError(
            f"{repository.name} holds another dataset ({'; '.join(differing)}): choose another --repo, or give "
            "--replace to replace it by this one."
        )
    if not _has_images_of(hub, repository, folder):
        there, here = ((config or {}).get("images") for config in (repository.config, folder.config()))
        raise UsageError(
            f"{repository.name} holds a dataset of other images (made of {there!r}, this one of {here!r}): choose "
            "another --repo, or give --replace to replace it by this one."
        )


def _has_images_of(hub: Hub, repository: Repository, folder: DatasetFolder) -> bool:
    """Whether a dataset can be another version of the one in the repository, judged by their images.

    The dataset may have grown, been gated, merged or generated again since it was pushed, and its images may be in
    another folder. One common file is enough; otherwise, the dataset must contain more than half of the images of the
    first rows in the repository.
    """
    files = {entry.sha256 for manifest in folder.manifests() for entry in manifest.files}
    if any(file.lfs and file.lfs.sha256 in files for file in repository.files.values()):
        return True
    there = hub.first_images(repository)
    lacking = set(there)
    for table in (table for part in ("data", "rejects") for table in folder.tables(["image_sha256"], part=part)):
        lacking.difference_update(table.column(0).to_pylist())
        # One common image is not enough: servers send the same placeholder for many images that are gone.
        if 2 * len(lacking) < len(there):
            return True
    return not there


@contextmanager
def _staged(
    folder: DatasetFolder, *, without_images: bool, on_progress: OnProgress
) -> Generator[tuple[DatasetFolder, Path]]:
    """Yields the folder to upload: the dataset, or a copy without images or in the current version of the record.

    After an error the copy is kept, so that the next push can use it.
    """
    assert folder.local_root is not None  # noqa: S101 - checked before
    without_images = without_images and has_images(folder.config())
    if folder.is_current() and not without_images:
        yield folder, folder.local_root
        return
    stage = folder.local_root / _STAGE
    merge_shards([folder], str(stage), shard_mb=_STAGE_SHARD_MB, images=not without_images, on_progress=on_progress)
    yield DatasetFolder(str(stage)), stage
    shutil.rmtree(stage, ignore_errors=True)


def _files(folder: DatasetFolder, root: Path, data: CardData, card: str) -> dict[str, Path | bytes]:
    """Path in the repository -> the local file, or the bytes, to upload there."""
    files: dict[str, Path | bytes] = {name: root / name for name in NOTES if (root / name).is_file()}
    files["README.md"] = card.encode()
    if data.images != ImageProvenance():
        files[IMAGES_JSON] = f"{data.images.model_dump_json(indent=2)}\n".encode()
    for manifest in intact_manifests(folder):
        for name in (f"shards/{manifest.shard}.json", *(entry.path for entry in manifest.files)):
            files[name] = root / name
    return files
