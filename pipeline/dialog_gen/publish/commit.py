"""Replaces the content of a repository on the Hub by one commit, which may be lost or overtaken on the way."""

import time
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

from dialog_gen.publish.hub import PAUSES_S, Hub, HubError, Repository, is_transient

_PRECONDITION_FAILED = 412


def commit_files(hub: Hub, repository: Repository, files: Mapping[str, Path | bytes], message: str) -> str:
    """Makes `files` (path in the repository -> local file or bytes) the whole content of a repository, in one commit.

    Large files are uploaded first. Returns the commit's hash. Raises UsageError and HubError like `Hub.call`; after an
    error, the repository is unchanged.
    """
    hub.keep_off_bars(files)
    with hub.errors():
        additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
        deletions = [CommitOperationDelete(path_in_repo=path) for path in repository.files if path not in files]
        hub.api.preupload_lfs_files(repository.name, additions, repo_type=hub.kind, free_memory=False)
        for pause_s in (*PAUSES_S, None):
            try:
                return hub.api.create_commit(
                    repository.name,
                    [*additions, *deletions],
                    repo_type=hub.kind,
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
