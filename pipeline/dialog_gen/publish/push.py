"""Publishes a dataset folder on the Hub, in one commit: who looks sees the old version or the new one, whole.

Large files are uploaded first. What the Hub has already is not sent again, so a push that failed goes on where it
stopped.
"""

import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.intact import footer, intact_manifests
from dialog_gen.dataset.verify import verify
from dialog_gen.download.provenance import NAME as IMAGES_JSON
from dialog_gen.download.provenance import ImageSource
from dialog_gen.publish.card import make_card
from dialog_gen.publish.card_data import CardData, card_data
from dialog_gen.publish.compact import has_images, merge
from dialog_gen.publish.hub import NOTES, PAUSES_S, Hub, HubError, Repository, check_name, differences, is_transient

_STAGE = ".share"
_STAGE_SHARD_MB = 500
_PRECONDITION_FAILED = 412


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSummary:
    """The version that is on the Hub now."""

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
    folder: DatasetFolder,
    repo: str,
    *,
    without_images: bool = False,
    private: bool = False,
    licence: str | None = None,
    link_rot: Path | None = None,
    message: str | None = None,
    replace: bool = False,
    check: bool = True,
    on_shard: Callable[[int], None] = lambda shards: None,
) -> PushSummary:
    """Makes the repository `repo` hold this dataset, with a card, and nothing else.

    `without_images` leaves url and checksums of each. With `check` every byte is read and checked before. Raises
    UsageError for whatever is wrong with what is asked for, a missing token and a repository of something else, unless
    it is to be replaced; FailedCheckError for a damaged dataset; HubError for a failing Hub: it shows what it showed.
    """
    check_name(repo)
    if folder.local_root is None:
        raise UsageError(f"{folder.location} is not on this machine: `dialog-gen compact` it to a local folder first.")
    for entry in (entry for manifest in intact_manifests(folder) for entry in manifest.files):
        footer(folder, entry)
    hub = Hub()
    hub.check_login()
    repository = hub.repository(repo)
    if repository:
        _check(hub, repository, folder, private=private, replace=replace)
    with _staged(folder, without_images=without_images, on_shard=on_shard) as (staged, root):
        if check and (verdict := verify(staged, on_shard=lambda: on_shard(1))).problem_count:
            raise FailedCheckError(
                f"{folder.location} is damaged, nothing was pushed: {verdict.problem_count} problems, the first is: "
                f"{verdict.problems[0]}."
            )
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


def _check(hub: Hub, repository: Repository, folder: DatasetFolder, *, private: bool, replace: bool) -> None:
    """Raises UsageError if what is in the repository should not be written over."""
    if private and not repository.private:
        raise UsageError(f"{repository.name} exists and is public: --private is for new ones. Change it on its page.")
    if replace or repository.is_empty:
        return
    if not repository.is_dataset:
        raise UsageError(
            f"{repository.name} exists and holds no dialog-gen dataset but {min(repository.files)!r}: choose another "
            "--repo, or give --replace to put this dataset in the place of all that."
        )
    if differing := differences(repository.config or {}, folder.config()):
        raise UsageError(
            f"{repository.name} holds another dataset ({'; '.join(differing)}): choose another --repo, or give "
            "--replace to put this one in its place."
        )
    if not _has_images_of(hub, repository, folder):
        there, here = ((config or {}).get("images") for config in (repository.config, folder.config()))
        raise UsageError(
            f"{repository.name} holds a dataset of other images (made of {there!r}, this one of {here!r}): choose "
            "another --repo, or give --replace to put this one in its place."
        )


def _has_images_of(hub: Hub, repository: Repository, folder: DatasetFolder) -> bool:
    """Whether a dataset can be another version of what is in the repository, by the images that both are about.

    It may have grown, been gated, merged or made anew, and its images may lie elsewhere now. One file in common will
    do, else most images of the first rows there.
    """
    files = {entry.sha256 for manifest in folder.manifests() for entry in manifest.files}
    if any(file.lfs and file.lfs.sha256 in files for file in repository.files.values()):
        return True
    there = hub.first_images(repository)
    lacking = set(there)
    for table in (table for part in ("data", "rejects") for table in folder.tables(["image_sha256"], part=part)):
        lacking.difference_update(table.column(0).to_pylist())
        # Not just one: servers give the same stand-in for many images that are gone.
        if 2 * len(lacking) < len(there):
            return True
    return not there


@contextmanager
def _staged(
    folder: DatasetFolder, *, without_images: bool, on_shard: Callable[[int], None]
) -> Generator[tuple[DatasetFolder, Path]]:
    """The folder to upload; a copy that is made for it is kept until it is uploaded."""
    assert folder.local_root is not None  # noqa: S101 - checked before
    without_images = without_images and has_images(folder.config())
    if folder.is_current() and not without_images:
        yield folder, folder.local_root
        return
    stage = folder.local_root / _STAGE
    merge(folder, str(stage), shard_mb=_STAGE_SHARD_MB, images=not without_images, on_shard=on_shard)
    yield DatasetFolder(str(stage)), stage
    shutil.rmtree(stage, ignore_errors=True)


def _files(folder: DatasetFolder, root: Path, data: CardData, card: str) -> dict[str, Path | bytes]:
    """Path in the repository -> what it is to hold."""
    files: dict[str, Path | bytes] = {name: root / name for name in NOTES if (root / name).is_file()}
    files["README.md"] = card.encode()
    if data.images != ImageSource():
        files[IMAGES_JSON] = f"{data.images.model_dump_json(indent=2)}\n".encode()
    for manifest in intact_manifests(folder):
        for name in (f"shards/{manifest.shard}.json", *(entry.path for entry in manifest.files)):
            files[name] = root / name
    return files


def _commit(hub: Hub, repository: Repository, files: Mapping[str, Path | bytes], message: str) -> str:
    """Uploads what is large, then makes the one commit; returns its hash."""
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
                    # The commit is refused if another came before it.
                    parent_commit=repository.commit,
                ).oid
            except Exception as error:
                overtaken = isinstance(error, HfHubHTTPError) and error.response.status_code == _PRECONDITION_FAILED
                if not overtaken and not is_transient(error):
                    raise
                # The answer may have got lost, not the commit.
                now = hub.repository(repository.name)
                if now and now.commit != repository.commit:
                    if _holds(now, additions):
                        return now.commit
                    raise HubError(
                        f"someone else changed {repository.name} meanwhile: look at it, and push again."
                    ) from None
                if pause_s is None:
                    raise
                time.sleep(pause_s)
    raise AssertionError("unreachable")


def _holds(repository: Repository, additions: list[CommitOperationAdd]) -> bool:
    """Whether a repository has these files and no others."""
    wanted = {addition.path_in_repo: addition.upload_info for addition in additions}
    return repository.files.keys() == wanted.keys() and all(
        file.size == wanted[path].size and (file.lfs is None or file.lfs.sha256 == wanted[path].sha256.hex())
        for path, file in repository.files.items()
    )
