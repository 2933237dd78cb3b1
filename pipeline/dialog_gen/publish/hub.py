"""The client of the Hub, for datasets and checkpoints: repositories, their valid files, errors with explanations."""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import pyarrow as pa
from huggingface_hub import HfApi, HfFileSystem, RepoFile, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.parquet import open_parquet
from dialog_gen.core.visible import visible
from dialog_gen.dataset.folder import upgraded
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.publish.compact import COMPACTED

NOTES = ("README.md", "config.json", "run.json", "gates.json", "rehydrate.json", "images.json")
"""Files that a dataset repository may have at its root."""
GIT_ATTRIBUTES = ".gitattributes"
"""A file of the Hub itself, which lists the large files."""
_CONTENT = re.compile(r"(data|rejects)/[^/]+\.parquet|shards/[^/]+\.json")
_CONFIG_BYTES = 1 << 20
# huggingface_hub changes its HTTP client from version to version; this is the base class of that client's errors.
_HTTP_ERROR = cast("type[Exception]", HfHubHTTPError.__bases__[0])
PAUSES_S = (1.0, 4.0, 16.0)
"""Seconds to wait before each further try after a transient error."""
# Keys in which two versions of a dataset may differ. `images` is a path; the images themselves are compared instead.
_FREE_KEYS = frozenset((COMPACTED, "rehydrated", "images", "schema_version"))

_T = TypeVar("_T")


class HubError(DialogGenError):
    """The Hub or the connection to it failed."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit."""

    name: str
    commit: str
    private: bool
    files: Mapping[str, RepoFile]
    """Path -> file, without the Hub's own file."""
    config: dict[str, Any] | None
    """Content of its config.json; None if the repository has none of a dialog-gen dataset."""

    @property
    def is_dataset(self) -> bool:
        """Whether the repository contains a dialog-gen dataset."""
        return self.config is not None and any(name.startswith("shards/") for name in self.files)

    @property
    def is_empty(self) -> bool:
        """Whether the repository has no files, or only a card."""
        return set(self.files) <= {"README.md"}


class Hub:
    """A client of the Hub for one kind of repositories that uses the stored token, or the one in HF_TOKEN."""

    def __init__(self, kind: Literal["dataset", "model"] = "dataset") -> None:
        self.kind: Literal["dataset", "model"] = kind
        self.token = get_token()
        self.api = HfApi(token=self.token or False, library_name="dialog-gen")
        if not sys.stderr.isatty():
            disable_progress_bars()

    def keep_off_bars(self, names: Iterable[str]) -> None:
        """Shows no progress bars if a file has a name with control characters, which they would print."""
        if any(name != visible(name) for name in names):
            disable_progress_bars()

    def check_login(self) -> None:
        """Raises UsageError unless there is a token that the Hub accepts."""
        if self.token is None:
            raise UsageError(
                "no Hugging Face token: log in with `hf auth login`, or set HF_TOKEN to a token that may write "
                "(https://huggingface.co/settings/tokens)."
            )
        self.call(self.api.whoami)

    def repository(self, name: str, revision: str | None = None) -> Repository | None:
        """The repository at `revision` (default: the newest commit); None if it does not exist or is not visible."""
        return self.call(lambda: self._repository(name, revision))

    def url(self, name: str) -> str:
        """The page of a repository."""
        return f"{self.api.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{name}"

    def new_repository(self, name: str, *, private: bool) -> Repository:
        """Creates a repository that does not exist. Raises HubError if the Hub does not show it then."""
        self.call(lambda: self.api.create_repo(name, repo_type=self.kind, private=private, exist_ok=True))
        found = self.repository(name)
        if found is None:
            raise HubError(f"{name} was created, but the Hub does not show it: try again.")
        return found

    def first_images(self, repository: Repository) -> set[str]:
        """The `image_sha256` of the first row group (about 100 rows); fetches little more. Empty if there are no rows.

        Raises UsageError if the first Parquet file is not part of a dataset.
        """
        parquet = min((path for path in repository.files if path.endswith(".parquet")), default=None)  # data first
        return self.call(lambda: self._first_images(repository, parquet)) if parquet else set()

    def call(self, call: Callable[[], _T]) -> _T:
        """Returns the result of `call`, which is called again after a pause if the Hub or the network failed.

        Raises UsageError for mistakes of the user, HubError for other failures.
        """
        with self.errors():
            for pause_s in PAUSES_S:
                try:
                    return call()
                except _HTTP_ERROR as error:
                    if not is_transient(error):
                        raise
                    time.sleep(pause_s)
            return call()

    @contextmanager
    def errors(self) -> Generator[None]:
        """Converts the library's errors to UsageError and HubError. No message contains the token."""
        try:
            yield
        except HFValidationError as error:
            raise UsageError(f"not a repository's name: {self._message(error)} Expected USER/NAME.") from None
        except RevisionNotFoundError as error:
            raise UsageError(f"the repository has no such --revision: {self._message(error)}") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise UsageError(
                    f"the Hub refused the token, or did not allow this action ({status}): {self._message(error)} "
                    "`hf auth login` stores another one; pushing needs a token with write permission."
                ) from None
            raise HubError(f"the Hub failed ({status}): {self._message(error)} Try again.") from None
        except (_HTTP_ERROR, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk, not of the network
            raise HubError(
                f"the Hub or the connection to it failed: {self._message(error.__cause__ or error)} Try again."
            ) from None

    def _message(self, error: BaseException) -> str:
        """The error's message on one line, without the token."""
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return f"{words.replace(self.token, '***') if self.token else words}".rstrip(".") + "."

    def _first_images(self, repository: Repository, path: str) -> set[str]:
        fs: Any = HfFileSystem(endpoint=self.api.endpoint, token=self.api.token, skip_instance_cache=True)
        try:
            with fs.open(f"datasets/{repository.name}@{repository.commit}/{path}") as file:
                parquet = open_parquet(file)
                return set(parquet.read_row_group(0, columns=["image_sha256"]).column("image_sha256").to_pylist())
        except (pa.ArrowException, KeyError) as error:
            raise UsageError(
                f"{repository.name}/{path} is no file of a dialog-gen dataset ({error}): choose another --repo, or "
                "give --replace to replace the repository's content by this dataset."
            ) from None

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        try:
            info = self.api.repo_info(name, revision=revision, repo_type=self.kind)
        except RepositoryNotFoundError:
            return None
        assert info.sha is not None  # noqa: S101 - always there
        tree = self.api.list_repo_tree(name, recursive=True, revision=info.sha, repo_type=self.kind)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path != GIT_ATTRIBUTES}
        config = self._config(name, info.sha) if _is_small(files.get("config.json")) else None
        return Repository(name, info.sha, bool(info.private), files, config)

    def _config(self, name: str, commit: str) -> dict[str, Any] | None:
        with tempfile.TemporaryDirectory(prefix="dialog-gen-") as folder:
            file = self.api.hf_hub_download(name, "config.json", repo_type=self.kind, revision=commit, local_dir=folder)
            try:
                found: Any = parse_json(Path(file).read_bytes())
            except ValueError:
                return None
        return found if isinstance(found, dict) and "schema_version" in found else None


def _is_small(file: RepoFile | None) -> bool:
    return file is not None and file.size <= _CONFIG_BYTES


def check_name(repo: str) -> None:
    """Raises UsageError unless `repo` is USER/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise UsageError(
            "a repository's name is USER/NAME, of letters, digits, '-', '_' and '.', such as me/dialogues."
        )


def is_content(path: str) -> bool:
    """Whether a file with this path can be part of a dataset repository."""
    return path in NOTES or _CONTENT.fullmatch(path) is not None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, _HTTP_ERROR)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The differences of two config.json, in words; empty if they can belong to two versions of one dataset."""
    if there.get("schema_version") == SCHEMA_VERSION:
        here = upgraded(here)  # `push` uploads the current version
    if there.get("schema_version") != here.get("schema_version"):
        return [f"schema_version: {there.get('schema_version')!r} there, {here.get('schema_version')!r} here"]
    keys = [key for key in {**there, **here} if key not in _FREE_KEYS and there.get(key) != here.get(key)]
    return [f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys]
