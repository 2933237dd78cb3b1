"""Storage buckets of the Hub, as a place to publish to: `hf://buckets/USER/NAME`, or a folder below.

A bucket has no commits. So manifests come after the rows that they name, and what is no longer part of the dataset is
deleted last: whoever reads meanwhile finds files that differ from their manifest, never rows that look complete.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from dialog_gen.core.errors import UsageError
from dialog_gen.core.json_text import parse_json
from dialog_gen.publish.hub import Hub, check_name, differences

_SCHEME = "hf://buckets/"
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Bucket:
    """A folder in a bucket."""

    id: str
    """USER/NAME."""
    folder: str = ""
    """Its path in the bucket, without slashes at both ends; empty for the whole bucket."""

    @classmethod
    def of(cls, repo: str) -> "Bucket | None":
        """The bucket that a URL names; None for the name of a repository. Raises UsageError for a wrong URL."""
        if "://" not in repo:
            return None
        user, _, rest = repo.removeprefix(_SCHEME).partition("/")
        name, _, folder = rest.partition("/")
        if not repo.startswith(_SCHEME) or any(part in (".", "..", "") for part in folder.strip("/").split("/")[1:]):
            raise UsageError(f"--repo {repo} is no bucket: give {_SCHEME}USER/NAME, or a folder below it.")
        check_name(f"{user}/{name}")
        return cls(f"{user}/{name}", folder.strip("/"))

    @property
    def url(self) -> str:
        """The bucket as a URL that fsspec opens."""
        return f"{_SCHEME}{self.id}{'/' if self.folder else ''}{self.folder}"

    def path(self, name: str) -> str:
        """The path in the bucket of a file of the dataset."""
        return f"{self.folder}/{name}" if self.folder else name


def bucket_files(hub: Hub, bucket: Bucket) -> set[str] | None:
    """The files in the folder, relative to it; None if the bucket does not exist or is not visible."""
    if not hasattr(hub.api, "list_bucket_tree"):
        raise UsageError("this huggingface_hub knows no buckets: `pip install -U huggingface_hub`.")

    def listed() -> set[str] | None:
        try:
            tree = list(hub.api.list_bucket_tree(bucket.id, bucket.folder or None, recursive=True))
        except HfHubHTTPError as error:
            if error.response.status_code == _NOT_FOUND:
                return _nothing_in(hub, bucket)
            raise
        prefix = bucket.path("")
        files = [entry.path for entry in tree if entry.type == "file"]
        # The Hub takes the folder for the beginning of a path, which other folders may have, too.
        return {path.removeprefix(prefix) for path in files if path.startswith(prefix)}

    return hub.call(listed)


def check_bucket(hub: Hub, bucket: Bucket, files: set[str], config: Mapping[str, Any], *, replace: bool) -> None:
    """Raises UsageError if the folder contains something that must not be overwritten."""
    if replace or files <= {"README.md", ".gitattributes"}:
        return
    there = _config(hub, bucket) if "config.json" in files else None
    if there is None:
        problem = f"holds no dialog-gen dataset but {min(files)!r}"
    elif differing := differences(there, config):
        problem = f"holds another dataset ({'; '.join(differing)})"
    else:
        return
    raise UsageError(
        f"{bucket.url} {problem}: choose another --repo, a folder below it, or give --replace to replace all of it by "
        "this dataset."
    )


def fill_bucket(
    hub: Hub, bucket: Bucket, files: Mapping[str, Path | bytes], there: set[str] | None, *, private: bool
) -> None:
    """Makes `files` (path -> local file or bytes) the whole content of the folder; the same call resumes.

    Raises UsageError and HubError like `Hub.call`.
    """
    hub.keep_off_bars(files)
    if there is None:
        hub.call(lambda: hub.api.create_bucket(bucket.id, private=private or None, exist_ok=True))
    for names in _in_order(files):
        added: list[tuple[str | Path | bytes, str]] = [(files[name], bucket.path(name)) for name in names]
        if added:
            hub.call(lambda added=added: hub.api.batch_bucket_files(bucket.id, add=added))
    if stale := sorted((there or set()) - files.keys()):
        hub.call(lambda: hub.api.batch_bucket_files(bucket.id, delete=[bucket.path(name) for name in stale]))


def _in_order(files: Iterable[str]) -> list[list[str]]:
    """What is uploaded first, then, and last. The configuration, first, says whose the folder is."""
    groups: list[list[str]] = [[], [], []]
    for name in files:
        groups[0 if name == "config.json" else 1 if name.startswith(("data/", "rejects/")) else 2].append(name)
    return groups


def _nothing_in(hub: Hub, bucket: Bucket) -> set[str] | None:
    """No files if the bucket exists but has no such folder; None if it does not exist."""
    try:
        hub.api.bucket_info(bucket.id)
    except HfHubHTTPError as error:
        if error.response.status_code == _NOT_FOUND:
            return None
        raise
    return set()


def _config(hub: Hub, bucket: Bucket) -> dict[str, Any] | None:
    fs: Any = HfFileSystem(endpoint=hub.api.endpoint, token=hub.api.token, skip_instance_cache=True)
    content = hub.call(lambda: fs.cat_file(f"buckets/{bucket.id}/{bucket.path('config.json')}"))
    try:
        found: Any = parse_json(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "schema_version" in found else None
