"""Publishes a dataset folder on the Hub in one commit: readers see either the complete old or the complete new version.

Large files are uploaded first. Files that the Hub already has are not sent again, so after a failure the same command
continues where it stopped.
"""

import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.intact import footer, intact_manifests
from dialog_gen.dataset.verify import verify as verify_dataset
from dialog_gen.download.provenance import NAME as IMAGES_JSON
from dialog_gen.download.provenance import ImageProvenance
from dialog_gen.publish.card import make_card
from dialog_gen.publish.card_data import CardData, card_data
from dialog_gen.publish.compact import has_images, merge_shards
from dialog_gen.publish.hub import NOTES, PAUSES_S, Hub, HubError, Repository, check_name, differences, is_transient

_STAGE = ".publish"
_STAGE_SHARD_MB = 500
_PRECONDITION_FAILED = 412


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSummary:
    """The version that was published."""

    repo: str
    commit: str
    url: str
    images: int
    pairs: int
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.url}: {self.images} images, {self.pairs} question-answer pairs, {self.bytes / 1e6:.1f} MB"


def push(
    dataset: str | Path | DatasetFolder,
    repo: str,
    *,
    without_images: bool = False,
    private: bool = False,
    licence: str | None = None,
    link_rot: Path | None = None,
    message: str | None = None,
    replace: bool = False,
    verify: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> PushSummary:
    """Publishes a dataset with its card as the whole content of the repository `repo` (USER/NAME).

    `without_images` publishes URLs and checksums instead of the bytes of images. `private` makes a new repository
    private. `licence` is an SPDX identifier or the terms in words. `link_rot` is a link_rot.json that replaces the one
    next to the images. `message` is the message of the commit. `replace` allows overwriting a repository that contains
    something else. With `verify`, every byte is checked first, otherwise only sizes.

    Raises UsageError for wrong arguments, a missing token, and a repository that contains something else;
    FailedCheckError for a damaged dataset; HubError if the Hub fails. After an error, the repository is unchanged.
    """
    if licence is not None and not licence.strip():
        raise UsageError("--licence is empty: give an SPDX identifier such as cc-by-4.0, or the terms in words.")
    folder = open_dataset(dataset)
    check_name(repo)
    if folder.local_root is None:
        raise UsageError(f"{folder.location} is not on this machine: `dialog-gen compact` it to a local folder first.")
    for entry in (entry for manifest in intact_manifests(folder) for entry in manifest.files):
        footer(folder, entry)
    hub = Hub()
    hub.check_login()
    repository = hub.repository(repo)
    if repository:
        _check_repository(hub, repository, folder, private=private, replace=replace)
    with _staged(folder, without_images=without_images, on_progress=on_progress) as (staged, root):
        if verify:
            _verify(staged, folder.location, on_progress)
        data = card_data(staged, link_rot=link_rot)
        files = _files(staged, root, data, make_card(data, repo, licence=licence))
        if repository is None:
            hub.call(lambda: hub.api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True))
            repository = hub.repository(repo)
            if repository is None:
                raise HubError(f"{repo} was created, but the Hub does not show it: try again.")
        accepted = data.totals.accepted
        commit = _commit(hub, repository, files, message or f"{data.pairs} dialogue pairs about {accepted} images")
        return PushSummary(
            repo=repo,
            commit=commit,
            url=f"{hub.api.endpoint}/datasets/{repo}",
            images=accepted,
            pairs=data.pairs,
            files=len(files),
            bytes=sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values()),
        )


def _verify(folder: DatasetFolder, location: str, on_progress: OnProgress) -> None:
    """Raises FailedCheckError for a damaged dataset; the message names its `location`."""
    verdict = verify_dataset(folder, on_progress=on_progress)
    if verdict.problem_count:
        raise FailedCheckError(
            f"{location} is damaged, nothing was pushed: {verdict.problem_count} problems, the first is: "
            f"{verdict.problems[0]}."
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
    merge_shards(folder, str(stage), shard_mb=_STAGE_SHARD_MB, images=not without_images, on_progress=on_progress)
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


def _commit(hub: Hub, repository: Repository, files: Mapping[str, Path | bytes], message: str) -> str:
    """Uploads the large files, then makes a single commit; returns its hash."""
    with hub.errors():
        additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
        deletions = [CommitOperationDelete(path_in_repo=path) for path in repository.files if path not in files]
        hub.api.preupload_lfs_files(repository.name, additions, repo_type="dataset", free_memory=False)
        for pause_s in (*PAUSES_S, None):
            try:
                return hub.api.create_commit(
                    repository.name,
                    [*additions, *deletions],
                    repo_type="dataset",
                    commit_message=message,
                    # The Hub refuses the commit if the repository has a newer one.
                    parent_commit=repository.commit,
                ).oid
            except Exception as error:
                overtaken = isinstance(error, HfHubHTTPError) and error.response.status_code == _PRECONDITION_FAILED
                if not overtaken and not is_transient(error):
                    raise
                # Perhaps the commit succeeded, and only the answer was lost.
                now = hub.repository(repository.name)
                if now and now.commit != repository.commit:
                    if _has_exactly(now, additions):
                        return now.commit
                    raise HubError(
                        f"someone else changed {repository.name} meanwhile: look at it, and push again."
                    ) from None
                if pause_s is None:
                    raise
                time.sleep(pause_s)
    raise AssertionError("unreachable")


def _has_exactly(repository: Repository, additions: list[CommitOperationAdd]) -> bool:
    """Whether a repository has exactly these files, compared by size and hash."""
    wanted = {addition.path_in_repo: addition.upload_info for addition in additions}
    return repository.files.keys() == wanted.keys() and all(
        file.size == wanted[path].size and (file.lfs is None or file.lfs.sha256 == wanted[path].sha256.hex())
        for path, file in repository.files.items()
    )
